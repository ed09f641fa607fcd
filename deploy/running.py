"""The common interface of the two stacks, the embedded stack and the stack of containers."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from deploy.airflow_api import AirflowApi, online_workers
from deploy.errors import DeployError
from deploy.places import ADMIN
from fleet.contract import queues

START_SECONDS = 180.0
"""How long a start may take: three times the slowest start measured on two busy cores."""
T = TypeVar("T")


class Stack(ABC):
    """A started stack on this machine's loopback.

    Args:
        web: Airflow's port.
        flower: Flower's port.
        base_url: the address at which people open Airflow, such as a proxy's; empty if they use the
            loopback address. If this address has a path, Airflow serves its pages below that path.
    """

    logs: str
    """Where users find the components' logs: a folder or a command."""

    def __init__(
        self, web: int, flower: int, admin_password: str, flower_password: str, base_url: str = ""
    ) -> None:
        self.web_address = f"http://127.0.0.1:{web}{urlsplit(base_url).path.rstrip('/')}"
        self.public_address = base_url.rstrip("/") or self.web_address
        self.flower_address = f"http://127.0.0.1:{flower}"
        self.api = AirflowApi(self.web_address, ADMIN, admin_password)
        self._flower_password = flower_password

    @abstractmethod
    def check(self) -> None:
        """Check that each component stays up.

        Raises:
            DeployError: a component does not stay up.
        """

    @abstractmethod
    def logs_of(self, dag_id: str, run_id: str) -> str:
        """Where users find a run's task logs: a folder or a web address."""

    def wait_until(self, is_ready: Callable[[], bool], what: str) -> None:
        """Poll until `is_ready` returns true.

        Raises:
            DeployError: a component does not stay up, or `START_SECONDS` have passed.
        """
        give_up_at = time.monotonic() + START_SECONDS
        while not ask(is_ready):
            self.check()
            if time.monotonic() > give_up_at:
                raise DeployError(
                    f"{what} not ready after {START_SECONDS:.0f} s; see the logs: "
                    f"{self.logs}; if the machine is busy, try again"
                )
            time.sleep(0.3)

    def answer(self, ask: Callable[[], T]) -> T:
        """Send the request `ask` to the api-server; send it again while the api-server restarts.

        Raises:
            DeployError: the api-server refuses the request, a component does not stay up, or
                `START_SECONDS` have passed.
        """
        give_up_at = time.monotonic() + START_SECONDS
        while True:
            try:
                return ask()
            except OSError as error:
                self.check()
                if time.monotonic() > give_up_at:
                    raise DeployError(
                        f"Airflow at {self.web_address} has not answered for {START_SECONDS:.0f} s "
                        f"({error}); see the webserver's logs: {self.logs}"
                    ) from error
                time.sleep(0.5)

    def is_healthy(self) -> bool:
        """Whether Airflow's four components are healthy and a worker serves each queue."""
        self.api.warm_up()
        health = self.api.health()
        names = ("metadatabase", "scheduler", "dag_processor", "triggerer")
        return all(health.get(name) == "healthy" for name in names) and not self.missing_workers()

    def missing_workers(self) -> set[str]:
        """The queues of the contract that have no worker online."""
        return set(queues()) - {name.partition("@")[0] for name in self.online_workers()}

    def online_workers(self) -> set[str]:
        """The names of the workers that Flower sees, such as `gpu@host`."""
        return online_workers(self.flower_address, ADMIN, self._flower_password)


def ask(is_ready: Callable[[], bool]) -> bool:
    """Call `is_ready`; if it raises an error, return false."""
    try:
        return is_ready()
    except (OSError, ValueError, DeployError):
        return False  # not ready yet; `wait_until` decides when to give up
