"""Start the stack, or update a running stack so that no task loses a try.

`docker compose up` alone would remove the webserver first. Workers that stop after the webserver
could not hand their tasks back. If the new webserver started too slowly, Compose would not start
the new workers at all.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from deploy.components import components
from deploy.containers import environment
from deploy.containers.engine import docker
from deploy.containers.stack import ComposeStack, Project, queue_of
from deploy.errors import DeployError
from deploy.messages import report
from deploy.places import REPOSITORY
from fleet.contract import GPU_LOCKS

WAIT_SECONDS = 300
_UP = ("up", "-d", "--no-build")
_HASH = "com.docker.compose.config-hash"


def start(project: Project) -> ComposeStack:
    """Start missing containers, replace outdated ones, and wait until all are healthy.

    Outdated workers stop first, while the webserver that they report to still runs. Then the
    control plane is replaced. Then the workers start. Containers that are up to date keep running.

    Raises:
        DeployError: a service does not become healthy. The workers are started anyway.
    """
    _make_gpu_locks()
    services = project.services()
    workers = [name for name, service in services.items() if queue_of(service.get("command"))]
    scale, wait = _scale(project), ("--wait", "--wait-timeout", str(WAIT_SECONDS))
    with _workers_started(project, workers, scale):
        if stopping := [name for name in _outdated(project) if name in workers]:
            report(f"stopping {', '.join(stopping)}: tasks go back to Airflow, trainings are saved")
            project.stop_workers(stopping)
        _replace_redis(project)
        _close_the_engine(project)
        lasting = [name for name in services if name not in workers and not _is_brief(name)]
        project.compose(*_UP, *wait, *_of(scale, lasting), *lasting)
        project.compose(*_UP, *wait, *_words(scale))
    stack = ComposeStack(project)
    stack.wait_until(stack.is_healthy, "the stack was")
    return stack


def _is_brief(name: str) -> bool:
    """Whether a service ends by itself, such as `init`.

    Compose starts such a service when it starts a service that depends on it.
    """
    return name in components() and not components()[name].is_lasting


@contextmanager
def _workers_started(
    project: Project, workers: list[str], scale: Mapping[str, int]
) -> Iterator[None]:
    """Start the workers again if the code under `with` fails or is interrupted.

    Raises:
        DeployError: the code raised a DeployError; the new error adds a remedy.
    """
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(DeployError):  # report only `error`, the cause
            project.compose(*_UP, "--no-deps", *_of(scale, workers), *workers)
            report(f"still outdated: {', '.join(_outdated(project)) or 'nothing'}")
        if not isinstance(error, DeployError):
            raise
        raise DeployError(f"{error}; fix the cause, then run `make up` again") from error


def _outdated(project: Project) -> list[str]:
    """The services that `up` would replace because their own settings or image changed.

    Compose's dry run also lists services that merely depend on a changed service. Compose does not
    replace these dependent services if a separate command replaces the changed service first.
    """
    if not (running := project.running()):
        return []
    said = project.ask("--dry-run", "create", "--no-build", progress=True)
    replaced = set(re.findall(r"Container (\S+) +Recreate\s*$", said, re.M))
    wanted = _hashes(project)
    found = set()
    for container in running:
        name, service = str(container["Name"]), str(container["Service"])
        if name in replaced and not _is_as_wanted(name, wanted.get(service, "")):
            found.add(service)
    return sorted(found)


def _hashes(project: Project) -> dict[str, str]:
    """Service → hash of its settings, as in the label that Compose puts on containers.

    `config --hash` ignores the content of an `env_file`, so `config` first merges these files
    into the settings.
    """
    whole = project.ask("--profile", "*", "config")
    lines = docker(
        *("compose", "-p", project.name, "--project-directory", str(REPOSITORY), "-f", "-"),
        *("--env-file", "/dev/null", "--profile", "*", "config", "--hash", "*"),
        text=whole,
        environment=environment.shell(),
    )
    return dict(line.split() for line in lines.splitlines())


def _is_as_wanted(container: str, wanted: str) -> bool:
    """Whether a container has the settings and the image that a new container would have."""
    (its,) = json.loads(docker("inspect", container))
    image = docker("image", "ls", "-q", "--no-trunc", its["Config"]["Image"]).split()
    return its["Config"]["Labels"].get(_HASH) == wanted and its["Image"] in image


def _scale(project: Project) -> dict[str, int]:
    """Service → number of its containers, if a user has set more than one with `--scale`."""
    numbers = Counter(str(each["Service"]) for each in project.running())
    return {name: number for name, number in numbers.items() if number > 1}


def _of(scale: Mapping[str, int], services: list[str]) -> list[str]:
    return _words({name: number for name, number in scale.items() if name in services})


def _words(scale: Mapping[str, int]) -> list[str]:
    """The `--scale` options for these numbers of containers."""
    return [word for name, n in scale.items() for word in ("--scale", f"{name}={n}")]


def _replace_redis(project: Project) -> None:
    """Recreate Redis if one of its mounted files has changed since Redis started.

    Compose does not notice such a change, because it compares only the paths of mounts. Postgres
    needs no such check, because it reads its script only when its data is first created.
    """
    mounted = ("compose/redis-start.sh", "redis-users.sh", "queues.toml")
    changed = max((REPOSITORY / "deploy" / name).stat().st_mtime for name in mounted)
    for container in project.running():
        if container["Service"] == "redis":
            began = docker("inspect", "--format", "{{.State.StartedAt}}", container["Name"])
            if datetime.fromisoformat(began[:19] + "+00:00").timestamp() < changed:
                project.compose(*_UP, "--force-recreate", "--no-deps", "redis")


def _close_the_engine(project: Project) -> None:
    """Remove `socket-proxy` if the profile `docker` is off; Compose would leave it running."""
    if "docker" not in environment.profiles_of(project.settings()):
        for container in project.containers():
            if container["Service"] == "socket-proxy":
                docker("rm", "--force", container["Name"])


def _make_gpu_locks() -> None:
    """Create the folder of the GPU locks so that all users can write to it.

    If Docker created the folder, only root could write to it.

    Raises:
        DeployError: the folder exists, but is not open to all users.
    """
    folder = Path(GPU_LOCKS)
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(PermissionError):  # another user owns it; its mode is checked below
        folder.chmod(0o1777)
    if folder.stat().st_mode & 0o777 != 0o777:
        raise DeployError(f"not all users can write to {folder}; run `sudo chmod 1777 {folder}`")
