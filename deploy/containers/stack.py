"""The stack of containers: build, start, query and stop it with Docker Compose."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.containers import environment
from deploy.containers.engine import DockerError, docker
from deploy.errors import DeployError
from deploy.places import PORTS, REPOSITORY
from deploy.running import Stack
from fleet.contract import STACK_LABEL

IMAGES = ("webserver", "cpu-worker", "gpu-worker", "music-genre-classif")
"""Services for which an image is built; Airflow's other services share the webserver's image."""
OWN_CHOICE = "docker-compose.yml:docker-compose.override.yml:docker-compose.override.yaml"
"""The files that Compose reads if COMPOSE_FILE is not set."""

CONTENTS = {
    "artifacts": "images, trained models that are not published, checkpoints",
    "dag-snapshots": "copies of DAG files",
    "logs": "the tasks' logs",
    "postgres": "Airflow's runs, users, connections and variables",
    "redis": "waiting tasks",
    "s3": "the bundled S3: logs, published data and models",
    "versions": "published data and models, with their Git history",
}
"""Volume → what is lost if it is deleted."""


@dataclass(frozen=True)
class Project:
    """One Compose project and its `.env` file."""

    name: str
    env_file: Path

    def settings(self) -> dict[str, str]:
        """Read the `.env` file; an empty value counts as missing.

        Raises:
            DeployError: the file is missing or damaged.
        """
        return {name: value for name, value in environment.read(self.env_file).items() if value}

    def services(self, *profiles: str) -> dict[str, Any]:
        """The services as Compose reads them from its files.

        Args:
            profiles: also include the services of these profiles, not only of those in `.env`; `*`
                includes the services of all profiles.

        Raises:
            DeployError: Compose refuses the files, or `.env` lacks a secret.
        """
        words = [word for name in profiles for word in ("--profile", name)]
        return dict(json.loads(self.ask(*words, "config", "--format", "json"))["services"])

    def ask(self, *words: str, progress: bool = False) -> str:
        """Run a Compose command on the project's files; returns its output.

        Args:
            words: the words of the command.
            progress: whether to return its progress messages (standard error) too.

        Raises:
            DeployError: Compose refuses the files, or `.env` lacks a secret.
        """
        options = ("--env-file", str(self.env_file), "-p", self.name)
        shell = environment.shell()
        try:
            return docker(
                "compose", *options, *words, environment=shell, errors=progress, seconds=60
            )
        except DockerError as error:
            raise DeployError(f"Compose refuses the stack's files: {error.said}") from None

    def files(self) -> list[Path]:
        """The files that can use variables of `.env`: Compose files, and SETTINGS_FILE."""
        named = environment.read(self.env_file) if self.env_file.exists() else {}
        listed = named.get("COMPOSE_FILE") or OWN_CHOICE
        paths = [REPOSITORY / name for name in (*listed.split(":"), named.get("SETTINGS_FILE", ""))]
        return [path for path in paths if path.is_file()]

    def compose(self, *words: str) -> None:
        """Run a Compose command on the project's files, and pass its output through.

        Raises:
            DeployError: the command failed.
        """
        command = ["docker", "compose", "--env-file", str(self.env_file), "-p", self.name, *words]
        _run(command, REPOSITORY)

    def of_running(self, *words: str) -> None:
        """Run a Compose command on the running project, even if the files have changed or are gone.

        Raises:
            DeployError: the command failed.
        """
        _run(["docker", "compose", "-p", self.name, *words], Path("/"))

    def stop_workers(self, services: Sequence[str] | None = None) -> None:
        """Stop running workers, all at the same time; each worker hands its tasks back.

        Args:
            services: stop only workers of these services; by default all workers.

        Raises:
            DeployError: the command failed.
        """
        found = [each for each in self.running() if services is None or each["Service"] in services]
        names = [str(each["Name"]) for each in found]
        commands = [
            json.loads(docker("inspect", "-f", "{{json .Config.Cmd}}", name)) for name in names
        ]
        workers = [name for name, words in zip(names, commands, strict=True) if queue_of(words)]
        if workers:
            # `docker compose stop` would fail if a service that a worker depends on is gone.
            _run(["docker", "stop", *workers], Path("/"))

    def containers(self) -> list[dict[str, Any]]:
        """List the project's containers, including those that have ended."""
        command = ["docker", "compose", "-p", self.name, "ps", "-a", "--format", "json"]
        answer = subprocess.run(command, cwd="/", capture_output=True, text=True)
        if answer.returncode != 0:
            raise DeployError(f"`docker compose ps` failed: {' '.join(answer.stderr.split())}")
        return _objects(answer.stdout)

    def running(self) -> list[dict[str, Any]]:
        """List the project's running containers."""
        return [each for each in self.containers() if each["State"] == "running"]

    def held_ports(self) -> set[int]:
        """The ports of this machine that the project's containers use."""
        published = [each.get("Publishers") or [] for each in self.running()]
        return {int(port["PublishedPort"]) for ports in published for port in ports}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the project, so that no other command starts or stops it at the same time.

        Raises:
            DeployError: another start or stop is in progress.
        """
        with os.fdopen(_open_lock(Path(tempfile.gettempdir()) / f"{self.name}.lock")) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DeployError(
                    f"another start or stop of {self.name} is in progress; wait until it has ended"
                ) from None
            yield

    def volumes(self) -> list[str]:
        """List the names of the project's volumes."""
        label = f"label=com.docker.compose.project={self.name}"
        return sorted(docker("volume", "ls", "-q", "--filter", label).split())

    def has_data(self) -> bool:
        """Whether the project has the volume of a database, even if no container runs.

        Raises:
            DeployError: the engine does not answer, so the result is unknown.
        """
        if shutil.which("docker") is None:
            return False
        listed = docker("volume", "ls", "-q", "--filter", f"name=^{self.name}_postgres$")
        return bool(listed)


def _open_lock(path: Path) -> int:
    """Open a lock file, or create it if it is missing.

    Linux refuses O_CREAT for another user's file in /tmp, so the first attempt is without it.
    """
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY)
    return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)


def _objects(text: str) -> list[dict[str, Any]]:
    """Parse `ps --format json`: until Compose 2.20 one array, later one object per line."""
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _run(command: list[str], folder: Path) -> None:
    """Run a command in this shell's environment, without variables that would override `.env`."""
    shell = environment.shell()
    ended = subprocess.run(command, cwd=folder, env=shell, stdin=subprocess.DEVNULL)
    if ended.returncode != 0:
        shown = " ".join(command)
        raise DeployError(f"`{shown}` ended with exit status {ended.returncode}; see its output")


class ComposeStack(Stack):
    """A started stack of containers."""

    def __init__(self, project: Project) -> None:
        self.project = project
        settings = project.settings()
        web, flower = (settings.get(name, port) for name, port in PORTS.items())
        passwords = settings["ADMIN_PASSWORD"], settings["FLOWER_PASSWORD"]
        super().__init__(int(web), int(flower), *passwords, settings.get("BASE_URL", ""))
        self.logs = "`make logs`"

    def check(self) -> None:
        """Check that each service's container stays up.

        Raises:
            DeployError: a container has failed, keeps restarting or is unhealthy.
        """
        for container in self.project.containers():
            ended = container["State"] == "exited" and container["ExitCode"] != 0
            if ended or container["State"] == "restarting" or container["Health"] == "unhealthy":
                raise DeployError(
                    f"service {container['Service']} does not stay up ({container['Status']}); "
                    f"see `docker logs {container['Name']}`"
                )

    def logs_of(self, dag_id: str, run_id: str) -> str:
        """The web address of a run's task logs."""
        return f"{self.public_address}/dags/{dag_id}/runs/{run_id}"


def queue_of(command: Sequence[str] | None) -> str:
    """The queue that a container with this command serves; empty if it is not a worker."""
    words = list(command or [])
    return str(words[-1]) if words[-4:-1] == ["-m", "fleet", "worker"] else ""


def build(project: Project) -> None:
    """Build the images whose code or lock file has changed."""
    project.compose("build", "--quiet", *IMAGES)


def stop(project: Project, *, volumes: bool) -> None:
    """Remove the containers and networks; with `volumes`, all data too."""
    project.stop_workers()  # before all else: each worker stops the containers that it started
    if started := docker("ps", "-aq", "--filter", f"label={STACK_LABEL}={project.name}").split():
        docker("rm", "--force", *started)
    project.of_running("down", "--remove-orphans", *(["--volumes"] if volumes else []))
