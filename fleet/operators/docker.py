"""The Docker way: a task runs one command in a container of its own.

When a worker dies, the provider's DockerOperator leaves its container behind, and the retry starts
a second container. This operator derives the container's name from the task, so the engine refuses
to create a second container. The retry follows the existing container.
"""

import contextlib
import os
import shlex
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk import Asset, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowTaskTimeout
from docker.errors import APIError, ImageNotFound, NotFound  # type: ignore[import-untyped]
from docker.types import LogConfig  # type: ignore[import-untyped]

from fleet.contract import STACK_LABEL
from fleet.operators.command import worker_name
from fleet.operators.containers import (
    ENGINE_AWAY,
    Container,
    container_environment,
    container_name,
    digest,
    inherited_mounts,
    is_waited_for,
    is_worth_following,
    labels_of,
    slot_device,
    stack_of,
)
from fleet.operators.outcome import (
    Told,
    alias_of,
    announce,
    quoted,
    raise_for,
    read_result,
    tell_why_last,
)
from fleet.operators.process import become_task_of_a_command

REQUEST_SECONDS = 60
TMP = "/tmp"  # noqa: S108 # a path in the container
LOG = LogConfig(type=LogConfig.types.JSON, config={"max-size": "10m", "max-file": "3"})
_DECIDED_HERE = {
    *("auto_remove", "container_name", "env_file", "force_pull", "host_tmp_dir", "labels"),
    *("log_opts_max_file", "log_opts_max_size", "mount_tmp_dir", "port_bindings", "privileged"),
    *("retrieve_output", "retrieve_output_path", "skip_on_exit_code", "tmp_dir", "tty", "xcom_all"),
}
"""Arguments of DockerOperator that this operator refuses, because they are useless or harmful."""


class ResumableDockerOperator(DockerOperator):
    """Run one command in a container; its last line on standard output is the task's result.

    The container gets the worker's mounts that `volumes` names, the worker's memory limits, the
    slot's GPU, and no network unless `network_mode` is given. A retry looks for the container of
    the previous try: it follows a running container, takes the result of a container that has
    succeeded, and replaces any other container. If the task gets SIGTERM, its container is stopped;
    the command then has some seconds to save a checkpoint. For exit statuses see `CommandOperator`.

    Args:
        command: program and arguments, templated; no shell.
        volumes: mount points in the worker's container; the new container gets the same mounts.
        asset: the asset that the command makes; see `CommandOperator`.
        arguments: arguments of DockerOperator, except those in `_DECIDED_HERE`. Secrets belong in
            `private_environment`, other variables in `environment`.

    Raises:
        TypeError: an argument is in `_DECIDED_HERE`.
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
        if refused := _DECIDED_HERE.intersection(arguments):
            raise TypeError(
                f"{type(self).__name__} sets {sorted(refused)} itself; remove these arguments"
            )
        defaults = {"network_mode": "none", "mount_tmp_dir": False, "timeout": REQUEST_SECONDS}
        super().__init__(**{**defaults, "outlets": alias_of(asset), **arguments})
        self.command = command  # type: ignore[assignment] # DockerOperator also takes a string
        self.volumes, self.asset = volumes, asset
        self._container: Container | None = None
        self._must_end = False
        tell_why_last(self)

    def execute(self, context: Context) -> dict[str, Any]:  # type: ignore[override]
        """Start or follow the task's container, and wait until it ends.

        Raises:
            AirflowFailException: the exit status is in `outcome.EXITS_FINAL`, the command succeeded
                but its result is invalid, or the container can never start.
            AirflowRescheduleException: the exit status is 75, or the worker stops.
            AirflowTaskTerminated, AirflowSkipException: the container was stopped because its task
                was marked with a final state, was cleared or timed out.
            AirflowException: the container ended in any other way, or the engine does not answer.
        """
        become_task_of_a_command()
        self.told = Told(self.log)
        context["ti"].xcom_push("worker", worker_name())
        words = [str(word) for word in self.command or ()]
        with self._engine_errors():
            worker = self._find_worker()
            name = container_name(stack_of(worker), context["ti"])
            self._container = container = Container(self.cli, name, self.told.line)
            self._reap(name, context, worker)
            state = self._run(container, words, context, worker)
            line = container.last_line() if state["ExitCode"] == 0 else ""
            container.remove()
        raise_for(state["ExitCode"], _ended(words, state), context, must_end=self._must_end)
        result = read_result(line, words)
        announce(self.asset, result, context)
        return result

    def _run(
        self, container: Container, words: list[str], context: Context, worker: Any
    ) -> dict[str, Any]:
        """Run the task's container until it ends; returns its state."""
        try:
            self._ensure(container, words, context, worker)
            if self._must_end:  # SIGTERM came too early for `on_kill` to stop the container
                container.stop()
            return container.watch()
        except AirflowTaskTimeout:
            # This process might end before the thread of `on_kill` has stopped the container.
            container.stop()
            container.remove()
            raise

    def on_kill(self) -> None:
        """Stop the container in a thread; `execute` still waits for the container's end."""
        self._must_end = True
        if self._container:
            threading.Thread(target=self._container.stop, daemon=True).start()

    @contextlib.contextmanager
    def _engine_errors(self) -> Iterator[None]:
        """Raise a one-line error if the engine refuses a request or does not answer."""
        try:
            yield
        except APIError as error:
            raise AirflowException(
                f"the Docker engine at {self.docker_url} refused the request: "
                f"{error.explanation or error}"
            ) from error
        except ENGINE_AWAY as error:
            raise AirflowException(
                f"the Docker engine at {self.docker_url} does not answer ({error}); "
                "check that the engine and the service socket-proxy are running"
            ) from error

    def _find_worker(self) -> Any:
        """Inspect the container that this worker runs in."""
        try:
            engine = self.cli
        except AirflowException as error:
            raise AirflowException(
                f"no Docker engine answers at {self.docker_url}; start the stack with "
                "`make up DOCKER=1`, and set the task's queue to gpu"
            ) from error
        try:
            return engine.inspect_container(socket.gethostname())
        except NotFound as error:
            raise AirflowFailException(
                f"{worker_name()} does not run in a container of the Docker engine at "
                f"{self.docker_url}, so the task's container cannot get the worker's mounts; use "
                "the engine that runs the worker"
            ) from error

    def _ensure(
        self, container: Container, words: list[str], context: Context, worker: Any
    ) -> None:
        """Keep the task's container if it runs or has succeeded; otherwise start a new one."""
        labels = labels_of(stack_of(worker), context["ti"], digest(self.image, words))
        if found := container.inspect():
            follows, status = is_worth_following(found, labels), found["State"]["Status"]
            doing = "following" if follows else "replacing"
            self.log.info("%s container %s, %s", doing, container.name, status)
            if follows:
                return
            container.stop()
            container.remove()
        self._create(container.name, words, labels, worker)
        self._start(container, words)

    def _create(self, name: str, words: list[str], labels: Mapping[str, str], worker: Any) -> None:
        environment = container_environment(os.environ, self.environment, self._private_environment)
        arguments = {
            "image": self.image,
            "command": words,
            "name": name,
            "environment": environment,
            "labels": labels,
            "user": self.user,
            "working_dir": self.working_dir,
            "entrypoint": self.entrypoint,
            "hostname": self.hostname,
            "host_config": self.cli.create_host_config(**self._host_settings(worker)),
        }
        try:
            self.cli.create_container(**arguments)
        except ImageNotFound:
            self._pull()
            self.cli.create_container(**arguments)

    def _start(self, container: Container, words: list[str]) -> None:
        self.log.info(
            "%s starts container %s of image %s: %s",
            *(worker_name(), container.name, self.image, shlex.join(words)),
        )
        try:
            self.cli.start(container.name)
        except APIError as error:
            container.remove()
            kind = AirflowFailException if error.is_client_error() else AirflowException
            raise kind(
                f"a container of {self.image} cannot start {quoted(words)}: {error.explanation}; "
                "check that the image contains the program and, if the slot has a GPU, that the "
                "engine has the NVIDIA Container Toolkit"
            ) from error

    def _host_settings(self, worker: Any) -> dict[str, Any]:
        """Build the host settings; the operator's memory limits override those of the worker."""
        self._normalize_mounts()
        limits = worker["HostConfig"]
        return {
            "mounts": [*self.mounts, *inherited_mounts(worker, self.volumes)],
            "network_mode": self.network_mode,
            "dns": self.dns,
            "dns_search": self.dns_search,
            "extra_hosts": self.extra_hosts,
            "ipc_mode": self.ipc_mode,
            "cpu_shares": round(self.cpus * 1024),  # `cpus=1.0` gives Docker's default of 1024
            "mem_limit": self.mem_limit or limits["Memory"],
            "shm_size": self.shm_size or limits["ShmSize"],
            "ulimits": self.ulimits,
            "cap_add": self.cap_add,
            "read_only": True,
            # `/tmp` is in memory, as large as the worker's `/tmp`, and private to the container.
            "tmpfs": {TMP: (limits.get("Tmpfs") or {}).get(TMP, "mode=1777")},
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "log_config": LOG,
            "device_requests": self.device_requests or slot_device(),
        }

    def _pull(self) -> None:
        self.log.info("pulling image %s", self.image)
        try:
            self.cli.pull(self.image)
            self.cli.inspect_image(self.image)
        except NotFound as error:
            raise AirflowFailException(
                f"image {self.image} is not on the Docker engine and could not be pulled "
                f"({error.explanation}); pull it on the engine's machine (`make up DOCKER=1` "
                "builds this project's image)"
            ) from error

    def _reap(self, own: str, context: Context, worker: Any) -> None:
        """Remove this stack's containers, except `own`, if their tasks have ended or are gone."""
        stack = f"{STACK_LABEL}={stack_of(worker)}"
        for each in self.cli.containers(all=True, filters={"label": stack}):
            key, labels = each["Id"], each["Labels"]
            is_own = f"/{own}" in (each["Names"] or [])
            if not is_own and not is_waited_for(context["ti"], labels):
                self.log.info(
                    "removing container %s, which its task no longer needs: %s", key, labels
                )
                leftover = Container(self.cli, key, self.log.info)
                leftover.stop()
                leftover.remove()


def _ended(words: Sequence[str], state: Mapping[str, Any]) -> str:
    memory = ", killed because it ran out of memory" if state.get("OOMKilled") else ""
    why = f" ({state['Error']})" if state.get("Error") else ""
    return f"{quoted(words)} ended with exit status {state['ExitCode']}{memory}{why}"
