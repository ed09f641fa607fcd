"""The Docker way to run the work: a task is one command in a container of its own.

The provider's DockerOperator leaves its container behind when its worker dies and starts a second
one beside it at the retry. Here a task's container has a name that follows from the task, so the
engine itself refuses a second, and a retry follows the one that is there.
"""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk import Asset, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from docker.errors import APIError, ImageNotFound, NotFound  # type: ignore[import-untyped]
from docker.types import DeviceRequest, LogConfig  # type: ignore[import-untyped]
from requests import RequestException
from urllib3.exceptions import HTTPError

from fleet.containers import (
    LABEL,
    container_environment,
    container_name,
    digest,
    inherited_mounts,
    is_waited_for,
    is_worth_following,
    labels_of,
    stack_of,
)
from fleet.gpus import VISIBLE_VARIABLE
from fleet.operators import worker_name
from fleet.outcome import alias_of, announce, quoted, raise_for, read_result
from fleet.process import TERM_GRACE_SECONDS, Lines, die_with_parent

ENGINE_AWAY_SECONDS = 120.0
"""An engine that restarts is waited for; one that is away for longer fails the try."""
REQUEST_SECONDS = 60
LOG = LogConfig(config={"max-size": "10m", "max-file": "3"})
_RESULT_ENTRIES = 4
"""The engine's log has lines in pieces of 16 KiB; a result may have 48."""
_ENGINE_AWAY = (RequestException, HTTPError, struct.error)


class ResumableDockerOperator(DockerOperator):
    """Run one command in a container; its last line on standard output is the task's result.

    The container has the mounts that `volumes` names of the worker's own, its limits, the slot's
    GPU, and no network unless `network_mode` says so. A retry follows the container of the try
    before, takes the result of one that has succeeded, and replaces any other. SIGTERM stops it,
    with time for a checkpoint. What exit statuses mean: see `CommandOperator`.

    Args:
        command: program and arguments, templated; no shell.
        volumes: mount points of the worker's container that this one gets too.
        asset: what the command makes, as `CommandOperator` has it.
        arguments: the provider's; `private_environment` holds what is secret.
    """

    template_fields: Sequence[str] = ("image", "command")
    template_ext: Sequence[str] = ()

    def __init__(
        self,
        *,
        command: Sequence[Any],
        volumes: Sequence[str] = (),
        asset: Asset | None = None,
        **arguments: Any,
    ) -> None:
        defaults = {"network_mode": "none", "mount_tmp_dir": False, "timeout": REQUEST_SECONDS}
        super().__init__(**{**defaults, "outlets": alias_of(asset), **arguments})
        self.command = command  # type: ignore[assignment] # theirs may be one text for a shell
        self.volumes, self.asset = volumes, asset
        self._name = ""
        self._must_end = False

    def execute(self, context: Context) -> dict[str, Any]:  # type: ignore[override]
        """Start or follow the task's container, and see it to its end.

        Raises:
            AirflowFailException: exit 1 or 2, exit 0 with a result that is none, or a container
                that can never start.
            AirflowRescheduleException: exit 75, or ended for SIGTERM.
            AirflowException: any other end, or the engine does not answer.
        """
        die_with_parent()
        context["ti"].xcom_push("worker", worker_name())
        words = [str(word) for word in self.command or ()]
        with self._engine_errors():
            worker = self.cli.inspect_container(socket.gethostname())
            self._reap(context, worker)
            self._name = container_name(stack_of(worker), context["ti"])
            self._ensure_container(words, context, worker)
            if self._must_end:  # SIGTERM came before there was a container to stop
                self._stop()
            state = self._watch()
            line = self._last_line()
            self._remove(self._name)
        raise_for(state["ExitCode"], _ended(words, state), context, must_end=self._must_end)
        result = read_result(line, words)
        announce(self.asset, result, context)
        return result

    def on_kill(self) -> None:
        """Stop the container; `execute` goes on and sees how it ends."""
        self._must_end = True
        if self._name:
            threading.Thread(target=self._stop, daemon=True).start()

    @contextlib.contextmanager
    def _engine_errors(self) -> Iterator[None]:
        """Say in one line what the engine refuses, or that it is away."""
        try:
            yield
        except APIError as error:
            raise AirflowException(
                f"the Docker engine at {self.docker_url} refuses: {error.explanation or error}"
            ) from error
        except _ENGINE_AWAY as error:
            raise AirflowException(
                f"the Docker engine at {self.docker_url} does not answer ({error}); "
                "see whether it and the service socket-proxy run"
            ) from error

    def _ensure_container(self, words: list[str], context: Context, worker: Any) -> None:
        """Have this task's container run, or have ended well; whatever else has its name goes."""
        labels = labels_of(stack_of(worker), context["ti"], digest(self.image, words))
        found = self._inspect()
        if found and is_worth_following(found, labels):
            self.log.info("following container %s, %s", self._name, found["State"]["Status"])
            return
        if found:
            self.log.info("replacing container %s, %s", self._name, found["State"]["Status"])
            self._stop()
            self._remove(self._name)
        self._start(words, labels, worker)

    def _start(self, words: list[str], labels: Mapping[str, str], worker: Any) -> None:
        environment = container_environment(os.environ, self.environment, self._private_environment)
        arguments = {
            "image": self.image,
            "command": words,
            "name": self._name,
            "environment": environment,
            "labels": labels,
            "host_config": self.cli.create_host_config(**self._host_settings(worker)),
        }
        try:
            self.cli.create_container(**arguments)
        except ImageNotFound:
            self._pull()
            self.cli.create_container(**arguments)
        self.log.info(
            "%s runs in container %s of %s: %s",
            *(worker_name(), self._name, self.image, " ".join(words)),
        )
        self.cli.start(self._name)

    def _host_settings(self, worker: Any) -> dict[str, Any]:
        """What the container has of the machine: no more than the worker has."""
        gpu = os.environ.get(VISIBLE_VARIABLE)
        return {
            "mounts": inherited_mounts(worker, self.volumes),
            "network_mode": self.network_mode,
            "mem_limit": worker["HostConfig"]["Memory"],
            "shm_size": worker["HostConfig"]["ShmSize"],
            "read_only": True,
            "tmpfs": {"/tmp": "mode=1777"},  # noqa: S108 # in memory, the container's own
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "log_config": LOG,
            "device_requests": [DeviceRequest(device_ids=[gpu], capabilities=[["gpu"]])]
            if gpu
            else None,
        }

    def _pull(self) -> None:
        try:
            self.log.info("pulling image %s", self.image)
            self.cli.pull(self.image)
        except APIError as error:
            raise AirflowFailException(
                f"image {self.image} is not on the Docker engine and cannot be pulled "
                f"({error.explanation}); `make up DOCKER=1` builds music-genre-classif"
            ) from error

    def _watch(self) -> dict[str, Any]:
        """Hand on the container's lines until it has ended; returns its state.

        A stream may break while the container runs: HAProxy cuts a silent one after ten minutes.
        """
        follower = _Follower(self)
        answered_at = time.monotonic()
        while True:
            try:
                follower.follow(self._name)
                state: dict[str, Any] = self.cli.inspect_container(self._name)["State"]
                answered_at = time.monotonic()
                if not state["Running"]:
                    return state
            except NotFound:
                raise AirflowException(
                    f"container {self._name} was removed while it ran; a retry goes on from its "
                    "checkpoint"
                ) from None
            except (*_ENGINE_AWAY, APIError):
                if time.monotonic() - answered_at > ENGINE_AWAY_SECONDS:
                    raise
            time.sleep(1.0)

    def _last_line(self) -> str:
        output = self.cli.logs(self._name, stdout=True, stderr=False, tail=_RESULT_ENTRIES)
        lines = output.decode("utf-8", "replace").splitlines()
        return lines[-1] if lines else ""

    def _inspect(self) -> dict[str, Any] | None:
        try:
            return dict(self.cli.inspect_container(self._name))
        except NotFound:
            return None

    def _stop(self) -> None:
        """Have the engine send SIGTERM and, after the grace, SIGKILL, even if we are gone."""
        with contextlib.suppress(APIError, *_ENGINE_AWAY):
            self.cli.stop(self._name, timeout=int(TERM_GRACE_SECONDS))

    def _remove(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            self.cli.remove_container(name, force=True)

    def _reap(self, context: Context, worker: Any) -> None:
        """Remove this stack's containers whose tasks nobody waits for any more."""
        stack = f"{LABEL}.stack={stack_of(worker)}"
        for each in self.cli.containers(all=True, filters={"label": stack}):
            name, labels = each["Names"][0].lstrip("/"), each["Labels"]
            if not is_waited_for(context["ti"], labels):
                self.log.info("removing container %s, which nobody waits for: %s", name, labels)
                self.cli.stop(name, timeout=int(TERM_GRACE_SECONDS))
                self._remove(name)


class _Follower:
    """Reads a container's log as it grows, each line once, however often the stream breaks."""

    def __init__(self, operator: ResumableDockerOperator) -> None:
        self._cli = operator.cli
        self._lines = Lines(operator.log.info)
        self._seen = b""

    def follow(self, name: str) -> None:
        """Hand on what is new until the stream ends."""
        seen = self._seen
        for entry in self._cli.logs(name, stream=True, timestamps=True, since=_seconds(seen)):
            stamp, _, text = entry.partition(b" ")
            if stamp > seen:  # of fixed width
                self._seen = max(self._seen, stamp)
                self._lines.feed(text)
        self._lines.flush()


def _seconds(stamp: bytes) -> int | None:
    """The second of a stamp of the engine's log, which is in UTC."""
    if not stamp:
        return None
    return int(datetime.fromisoformat(f"{stamp[:19].decode()}+00:00").timestamp())


def _ended(words: Sequence[str], state: Mapping[str, Any]) -> str:
    memory = ", killed for want of memory" if state.get("OOMKilled") else ""
    return f"{quoted(words)} ended with exit status {state['ExitCode']}{memory}"
