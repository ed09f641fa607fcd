"""One stack of containers for all tests, beside any other stack on this machine.

The stack is started once, with both profiles and `stack.yml`, because a start takes a minute. Only
the last tests start it again, from the plain files.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.airflow_api import NotFoundError, path
from deploy.containers import environment
from deploy.containers.stack import ComposeStack, Project
from deploy.demo import Run, trigger
from tests.browser import browser, logged_in, page  # noqa: F401 # fixtures
from tests.fakes.driver import make_driver
from tests.music import write_few_tracks

REPOSITORY = Path(__file__).resolve().parent.parent.parent
NAME = "music-genre-test"
GPUS = ("GPU-11", "GPU-12", "GPU-13", "GPU-14")
"""GPUs that the embedded stack does not use: its tests can run at the same time."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def deploy(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "deploy", *words]
    nobody = subprocess.DEVNULL
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, stdin=nobody)


def engine_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Project:
    """The project with the files and variables of a new user."""
    if not engine_answers():
        pytest.skip("no Docker engine answers; start one, or install docker.io and docker-compose")
    env_file = tmp_path_factory.mktemp("plain") / ".env"
    environment.ensure(env_file)
    with env_file.open("a") as file:
        file.write(f"WEB_PORT={free_port()}\nFLOWER_PORT={free_port()}\nTAG=test\n")
    return Project(NAME, env_file)


@pytest.fixture(scope="session")
def driver(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("driver")
    for opened in (folder, *folder.parents[:2]):
        opened.chmod(0o755)
    return make_driver(folder, len(GPUS), first=11)


@pytest.fixture(scope="session")
def own_dags(tmp_path_factory) -> Path:
    """A copy of the tests' DAGs, which tests can edit: the stack's DAGS_DIR."""
    folder = tmp_path_factory.mktemp("own") / "dags"
    shutil.copytree(REPOSITORY / "tests" / "stack" / "dags", folder)
    for opened in folder.parents[:3]:
        opened.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def project(plain: Project, driver: str, own_dags: Path) -> Project:
    """The project `plain` with the settings that the tests need."""
    env_file = plain.env_file.with_name("stack.env")
    files = "COMPOSE_FILE=docker-compose.yml:tests/stack/stack.yml"
    web = f"BASE_URL=http://127.0.0.1:{plain.settings()['WEB_PORT']}/airflow"
    dags = f"DAGS_DIR={own_dags}"
    env_file.write_text(
        f"{plain.env_file.read_text()}{files}\nFAKE_DRIVER={driver}\n{web}\n{dags}\n"
    )
    return Project(NAME, env_file)


@pytest.fixture(scope="session")
def stack(project: Project) -> ComposeStack:
    down = ("down", "--project", NAME, "--volumes", "--yes")
    deploy(*down)  # remove the stack of a killed test run
    try:
        words = ("up", "--project", NAME, "--env-file", str(project.env_file))
        up = deploy(*words, "--s3", "--docker")
        assert up.returncode == 0, up.stdout + up.stderr
        assert "cpu: CPU; torch is not installed" in up.stdout
        assert "Docker way:    DAG authors can become root on this machine" in up.stderr
        yield ComposeStack(project)
    finally:
        ended = deploy(*down)
    assert ended.returncode == 0, ended.stderr
    for kind in ("container", "network", "volume"):
        words = ["docker", kind, "ls", "-q", "--filter", f"label=com.docker.compose.project={NAME}"]
        words += ["-a"] if kind == "container" else []
        assert subprocess.check_output(words, text=True) == "", kind


@pytest.fixture(scope="session")
def few(stack, tmp_path_factory) -> str:
    """The address of a few tracks, for tests that need a training but no particular accuracy."""
    folder = write_few_tracks(tmp_path_factory.mktemp("few") / "genres")
    tar = subprocess.run(["tar", "-C", str(folder), "-c", "."], capture_output=True, check=True)
    unpack = "mkdir -p /artifacts/few && tar -C /artifacts/few -x --no-same-owner"
    words = ["docker", "exec", "-i", container("cpu-worker"), "sh", "-ec", unpack]
    subprocess.run(words, input=tar.stdout, check=True)
    return "/artifacts/few"


FAST = {"model": "shufflenet_v2_x0_5", "epochs": 1, "seed": 4}


@pytest.fixture(scope="session")
def run(stack: ComposeStack) -> Run:
    """A whole run on the demo music, published."""
    run = trigger(stack, FAST)
    assert finish(run) == "success", run.rows()
    return run


def container(service: str, number: int = 1) -> str:
    return f"{NAME}-{service}-{number}"


def inside(service: str, *command: str, number: int = 1) -> subprocess.CompletedProcess:
    words = ["docker", "exec", container(service, number), *command]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def inspect(service: str) -> dict:
    return json.loads(subprocess.check_output(["docker", "inspect", container(service)]))[0]


def wait_until(is_so, seconds: float = 120.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(1)


def containers_of(service: str) -> list[str]:
    words = ["docker", "ps", "-q", "--filter", f"label=com.docker.compose.service={service}"]
    words += ["--filter", f"label=com.docker.compose.project={NAME}"]
    return subprocess.check_output(words, text=True).split()


def finish(run: Run, seconds: float = 420.0) -> str:
    give_up_at = time.monotonic() + seconds
    while (state := run.state()) in ("queued", "running"):
        assert time.monotonic() < give_up_at, run.rows()
        time.sleep(0.5)
    return state


def log_of(stack: ComposeStack, run: Run, task: str, attempt: int = 1) -> str:
    address = path("dags", run.dag_id, "dagRuns", run.run_id, "taskInstances", task)
    try:
        return json.dumps(stack.api.get(f"{address}/logs/{attempt}?full_content=true"))
    except NotFoundError:  # the task has not begun
        return ""


@pytest.fixture(scope="session")
def admin_password(project: Project) -> str:
    return environment.read(project.env_file)["ADMIN_PASSWORD"]
