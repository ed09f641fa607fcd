import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy.embedded.stack import LocalStack
from deploy.embedded.state import State
from tests.browser import browser, logged_in, page  # noqa: F401 # fixtures
from tests.fakes.driver import make_driver
from tests.music import write_few_tracks

REPOSITORY = Path(__file__).resolve().parent.parent.parent
FREE_PORTS = ("--web-port", "0", "--flower-port", "0")


def hear_signals() -> None:
    """Restore SIGINT and SIGHUP: a shell's `&` and nohup make children ignore these signals."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start_deploy(*words: str, within: tuple[str, ...] = (), **options) -> subprocess.Popen:
    return subprocess.Popen(
        [*within, sys.executable, "-m", "deploy", *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_signals,
        **options,
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests that start their own stack first: the shared stack uses CPU time even when idle."""
    items.sort(key=lambda item: "stack" in item.fixturenames)


LOGS_OF_A_FAILURE = ("gpu-worker", "cpu-worker", "scheduler")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """If a test fails on the stack, report the last lines of the workers' and scheduler's logs."""
    report = yield
    stack = getattr(item, "funcargs", {}).get("stack")
    if report.failed and stack is not None:
        for name in LOGS_OF_A_FAILURE:
            lines = (stack.state.logs / f"{name}.log").read_text(errors="replace").splitlines()
            report.sections.append((name, "\n".join(line[:300] for line in lines[-80:])))
    return report


@pytest.fixture
def deploy():
    """Start `python -m deploy …`; processes that still run when the test ends are killed."""
    started = []

    def start(*words: str, **options) -> subprocess.Popen:
        started.append(start_deploy(*words, **options))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes that name the stack's folder, and orphaned processes of any Airflow.

    A process names the folder in its arguments or its environment. Celery's processes do not,
    because their titles overwrite their environment; they are found as orphans.
    """
    found = []
    for process in psutil.process_iter():
        try:
            title = process.cmdline()
            words = [*title, *process.environ().values()]
            names_it = any(str(folder) in word for word in words)
            is_orphan = process.ppid() == 1 and any(
                word.startswith(("[celeryd:", "airflow ")) for word in title
            )
            if process.pid != os.getpid() and (names_it or is_orphan):
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def assert_nothing_left(folder: Path, seconds: float = 5.0) -> None:
    give_up_at = time.monotonic() + seconds
    while left := processes_of(folder):
        assert time.monotonic() < give_up_at, [process.cmdline() for process in left]
        time.sleep(0.5)


N_GPUS = 2
SETTINGS = """\
# After a kill there is a checkpoint to go on from.
MUSIC_GENRE_CHECKPOINT_SECONDS=1
# Parsing unchanged DAG files again takes processor time from the tests.
AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL=300
"""


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory) -> str:
    return make_driver(tmp_path_factory.mktemp("driver"), N_GPUS)


@pytest.fixture(scope="session")
def own_dags(tmp_path_factory) -> Path:
    """The shared stack's DAGS_DIR: the folder for the user's own DAGs."""
    return tmp_path_factory.mktemp("own dags")


@pytest.fixture(scope="session")
def stack(tmp_path_factory, fake_driver, own_dags):
    """One embedded stack for all tests that need a healthy one."""
    folder = tmp_path_factory.mktemp("stack with space") / "state"
    folder.mkdir()
    (folder / "airflow.env").write_text(f"{SETTINGS}DAGS_DIR={own_dags}\n")
    try:
        up_local(folder, fake_driver)
        yield LocalStack(State(folder))
    finally:
        down_local(folder)


def up_local(folder: Path, fake_driver: str, *more: str) -> str:
    """Start the stack; returns its standard error."""
    environment = os.environ | {"LD_LIBRARY_PATH": fake_driver}
    words = ("up-local", "--state", str(folder), *FREE_PORTS, *more)
    with start_deploy(*words, env=environment) as up:
        _, errors = up.communicate()
    assert up.returncode == 0, errors
    return errors


def down_local(folder: Path) -> None:
    with start_deploy("down-local", "--state", str(folder)) as down:
        _, errors = down.communicate()
    assert down.returncode == 0, errors
    assert "killed" not in errors
    assert_nothing_left(folder)


@pytest.fixture(scope="session")
def few(tmp_path_factory) -> str:
    """The address of a few tracks, for tests that need a training but no particular accuracy."""
    return str(write_few_tracks(tmp_path_factory.mktemp("few") / "genres"))


@pytest.fixture(scope="session")
def admin_password(stack) -> str:
    return secrets_of(stack)["admin_password"]


def secrets_of(stack: LocalStack) -> dict[str, str]:
    return json.loads(stack.state.secrets_path.read_text())


def wait_until(is_so, seconds: float = 120.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.5)
