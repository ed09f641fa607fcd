"""The stack as containers: build, start, query and stop it by Docker Compose."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy.containers import environment
from deploy.containers.engine import DockerError, docker
from deploy.errors import DeployError
from deploy.places import PORTS, REPOSITORY
from deploy.running import Stack
from fleet.contract import GPU_LOCKS, STACK_LABEL

IMAGES = ("webserver", "cpu-worker", "gpu-worker", "music-genre-classif")
"""Services for which an image is built; Airflow's other services share the webserver's image."""
OWN_CHOICE = "docker-compose.yml:docker-compose.override.yml:docker-compose.override.yaml"
"""The files that Compose reads where COMPOSE_FILE is not set."""
WAIT_SECONDS = 300


@dataclass(frozen=True)
class Project:
    """One Compose project and its `.env` file."""

    name: str
    env_file: Path

    def settings(self) -> dict[str, str]:
        """Read the `.env` file; an empty value counts as missing.

        Raises:
            DeployError: it is missing or damaged.
        """
        return {name: value for name, value in environment.read(self.env_file).items() if value}

    def services(self) -> dict[str, Any]:
        """The project's services as Compose reads them from its files, including all profiles.

        Raises:
            DeployError: Compose refuses the files, or `.env` lacks a secret.
        """
        words = ("--env-file", str(self.env_file), "-p", self.name, "--profile", "*")
        try:
            text = docker(
                *("compose", *words, "config", "--format", "json"), environment=environment.shell()
            )
        except DockerError as error:
            raise DeployError(f"Compose refuses the stack's files: {error.said}") from None
        return dict(json.loads(text)["services"])

    def files(self) -> list[Path]:
        """The files in which Compose looks for variables of `.env`."""
        named = environment.read(self.env_file) if self.env_file.exists() else {}
        listed = named.get("COMPOSE_FILE") or OWN_CHOICE
        paths = [REPOSITORY / name for name in (*listed.split(":"), named.get("SETTINGS_FILE", ""))]
        return [path for path in paths if path.is_file()]

    def compose(self, *words: str) -> None:
        """Run a Compose command on the project's files, and pass its output through.

        Raises:
            DeployError: it failed.
        """
        command = ["docker", "compose", "--env-file", str(self.env_file), "-p", self.name, *words]
        _run(command, REPOSITORY)

    def of_running(self, *words: str) -> None:
        """Run a Compose command on the running project, even if the files have changed or are gone.

        Raises:
            DeployError: it failed.
        """
        _run(["docker", "compose", "-p", self.name, *words], Path("/"))

    def containers(self) -> list[dict[str, Any]]:
        """List the project's containers, including those that have ended."""
        command = ["docker", "compose", "-p", self.name, "ps", "-a", "--format", "json"]
        answer = subprocess.run(command, cwd="/", capture_output=True, text=True)
        if answer.returncode != 0:
            raise DeployError(f"`docker compose ps` failed: {' '.join(answer.stderr.split())}")
        return _objects(answer.stdout)

    def running(self) -> list[dict[str, Any]]:
        """List the project's containers that run."""
        return [each for each in self.containers() if each["State"] == "running"]

    def held_ports(self) -> set[int]:
        """The ports of this machine that the project's containers use."""
        published = [each.get("Publishers") or [] for each in self.running()]
        return {int(port["PublishedPort"]) for ports in published for port in ports}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Exclude other starts and stops of the project, which would remove its containers.

        Raises:
            DeployError: another one is in progress.
        """
        with os.fdopen(_open_lock(Path(tempfile.gettempdir()) / f"{self.name}.lock")) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DeployError(
                    f"another start or stop of {self.name} is in progress; wait until it has ended"
                ) from None
            yield

    def has_data(self) -> bool:
        """Whether the project has a database, running or not.

        Raises:
            DeployError: the engine does not answer, so this is unknown.
        """
        if shutil.which("docker") is None:
            return False
        listed = docker("volume", "ls", "-q", "--filter", f"name=^{self.name}_postgres$")
        return bool(listed)


def _open_lock(path: Path) -> int:
    """Open a lock file, whoever made it: Linux refuses O_CREAT for another user's file in /tmp."""
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY)
    return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)


def _objects(text: str) -> list[dict[str, Any]]:
    """Parse `ps --format json`: an array until Compose 2.20, later one object per line."""
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _run(command: list[str], folder: Path) -> None:
    """Run a command in this shell's environment, minus variables that would override `.env`."""
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
            DeployError: one has ended or is unhealthy.
        """
        for container in self.project.containers():
            ended = container["State"] == "exited" and container["ExitCode"] != 0
            if ended or container["State"] == "restarting" or container["Health"] == "unhealthy":
                raise DeployError(
                    f"service {container['Service']} does not stay up ({container['Status']}); "
                    f"see `docker logs {container['Name']}`"
                )

    def logs_of(self, dag_id: str, run_id: str) -> str:
        """Where a run's task logs are."""
        return f"{self.public_address}/dags/{dag_id}/runs/{run_id}"


def build(project: Project) -> None:
    """Build the images whose code or lock file has changed."""
    project.compose("build", "--quiet", *IMAGES)


def start(project: Project) -> ComposeStack:
    """Start what is not running, and wait until everything is healthy.

    Raises:
        DeployError: a service does not become healthy.
    """
    _make_gpu_locks()
    _replace_outdated(project)
    _close_the_engine(project)
    wait = ("--wait", "--wait-timeout", str(WAIT_SECONDS))
    project.compose("up", "-d", "--no-build", *wait, *_scale(project))
    stack = ComposeStack(project)
    stack.wait_until(stack.is_healthy, "the stack was")
    project.compose("exec", "-T", "scheduler", "python", "-m", "fleet", "sync-pools")
    return stack


def _scale(project: Project) -> list[str]:
    """The options that keep the numbers of containers that a user has set with `--scale`."""
    numbers = Counter(str(each["Service"]) for each in project.running())
    return [word for name, n in numbers.items() if n > 1 for word in ("--scale", f"{name}={n}")]


def _replace_outdated(project: Project) -> None:
    """Recreate Redis if a mounted file has changed since its start: Compose compares only paths.

    Postgres needs no such check, because it reads its script only when its data is first created.
    """
    mounted = ("compose/redis-start.sh", "redis-users.sh", "queues.toml")
    changed = max((REPOSITORY / "deploy" / name).stat().st_mtime for name in mounted)
    for container in project.containers():
        if container["Service"] == "redis" and container["State"] == "running":
            began = docker("inspect", "--format", "{{.State.StartedAt}}", container["Name"])
            if datetime.fromisoformat(began[:19] + "+00:00").timestamp() < changed:
                project.compose("up", "-d", "--no-build", "--force-recreate", "--no-deps", "redis")


def _close_the_engine(project: Project) -> None:
    """Remove the engine's proxy if the profile `docker` is off; Compose would leave it running."""
    if "docker" not in environment.profiles_of(project.settings()):
        for container in project.containers():
            if container["Service"] == "socket-proxy":
                docker("rm", "--force", container["Name"])


def _make_gpu_locks() -> None:
    """Create the folder of the GPU locks, open to all users; one made by Docker would not be.

    Raises:
        DeployError: it exists, but is not open to all users.
    """
    folder = Path(GPU_LOCKS)
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(PermissionError):  # another user made it
        folder.chmod(0o1777)
    if folder.stat().st_mode & 0o777 != 0o777:
        raise DeployError(f"{folder} is not open to all users; run `sudo chmod 1777 {folder}`")


def stop(project: Project, *, volumes: bool) -> None:
    """Remove the containers and networks; with `volumes`, all data too."""
    if project.running():
        project.of_running("stop")  # in order: a worker can still stop the containers it started
    if started := docker("ps", "-aq", "--filter", f"label={STACK_LABEL}={project.name}").split():
        docker("rm", "--force", *started)
    project.of_running("down", "--remove-orphans", *(["--volumes"] if volumes else []))
