"""Starting and stopping: each obstacle gives one error line, and no started process is left."""

import contextlib
import os
import signal
import socket
import threading
import time

import pytest
from conftest import FREE_PORTS, assert_nothing_left

from deploy.embedded.state import MIN_FREE_BYTES, State
from deploy.embedded.supervisor import supervisord_process

pytestmark = pytest.mark.timeout(900)  # a start alone can take minutes


def one_error_line(process) -> str:
    _, errors = process.communicate(timeout=60)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1, errors
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    return lines[0]


def test_a_second_start_in_the_same_folder_is_refused_and_harms_nothing(deploy, stack):
    for verb in ("demo", "up-local"):
        line = one_error_line(deploy(verb, "--state", str(stack.state.folder), *FREE_PORTS))
        assert "already running" in line
        assert "make down-local" in line
    assert stack.is_healthy()


def test_two_starts_at_once_are_one(deploy, tmp_path):
    folder = tmp_path / "state"
    first = deploy("demo", "--state", str(folder), *FREE_PORTS, start_new_session=True)
    while not (folder / "lock").exists() or not (folder / "lock").read_text():
        assert first.poll() is None
        time.sleep(0.02)
    line = one_error_line(deploy("demo", "--state", str(folder), *FREE_PORTS))
    assert f"process {first.pid}" in line
    line = one_error_line(deploy("down-local", "--state", str(folder)))
    assert f"process {first.pid}" in line
    os.killpg(first.pid, signal.SIGINT)
    assert first.wait(60) == 130
    assert_nothing_left(folder)


def test_a_taken_port_is_named_with_the_remedy(deploy, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        folder = tmp_path / "state"
        line = one_error_line(deploy("demo", "--state", str(folder), "--web-port", port))
    assert f"port {port} for web is taken" in line
    assert "WEB_PORT=" in line
    assert_nothing_left(folder)


def test_a_folder_that_cannot_be_written_is_named(deploy, tmp_path):
    (tmp_path / "file").touch()
    line = one_error_line(deploy("demo", "--state", str(tmp_path / "file" / "state")))
    assert "cannot be written: Not a directory" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_line(deploy, tmp_path):
    mount = f"mount -t tmpfs -o size=64m tmpfs '{tmp_path}' && exec \"$@\""
    small_disk = ("unshare", "--mount", "sh", "-c", mount, "sh")
    line = one_error_line(deploy("demo", "--state", str(tmp_path / "state"), within=small_disk))
    assert "has 0.1 GiB free" in line
    assert f"but {MIN_FREE_BYTES / 1024**3:.0f} GiB are needed" in line


def test_a_damaged_secrets_file_is_one_line(deploy, tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "secrets.json").write_text("{")
    line = one_error_line(deploy("demo", "--state", str(folder), *FREE_PORTS))
    assert "secrets.json cannot be read" in line


PHASES = {
    "creating the database": "creating the database",
    "migrating": "preparing the metadata database",
    "starting": "starting webserver",
    "running": ("running music_genre_training", "continuing the interrupted run"),
    "training": "train: running",
}


@pytest.mark.parametrize(
    ("phase", "signum"),
    [
        ("creating the database", signal.SIGINT),
        ("migrating", signal.SIGHUP),
        pytest.param("starting", signal.SIGINT, marks=pytest.mark.soak),
        pytest.param("running", signal.SIGTERM, marks=pytest.mark.soak),
    ],
)
def test_an_interrupted_demo_leaves_nothing_running(deploy, interrupted, phase, signum):
    """Each phase finds the folder as the previous phase left it, as after a real Ctrl-C."""
    demo = deploy("demo", "--state", str(interrupted), *FREE_PORTS, start_new_session=True)
    lines = follow(demo)
    wait_for_line(lines, PHASES[phase])
    time.sleep(0.3)
    os.killpg(demo.pid, signum)
    assert demo.wait(60) == 130, lines
    assert_nothing_left(interrupted)
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("phase", ["starting", pytest.param("running", marks=pytest.mark.soak)])
def test_a_demo_killed_with_9_takes_its_stack_along(deploy, interrupted, phase):
    demo = deploy("demo", "--state", str(interrupted), *FREE_PORTS, start_new_session=True)
    lines = follow(demo)
    wait_for_line(lines, PHASES[phase])
    demo.kill()
    demo.wait()
    assert_nothing_left(interrupted, seconds=30)


@pytest.mark.soak
def test_a_training_that_was_interrupted_is_gone_on_with_by_the_next_demo(deploy, interrupted):
    """The next demo must continue the interrupted run, and must not queue a new run behind it."""
    for phase in (PHASES["training"], "continuing the interrupted run"):
        demo = deploy("demo", "--state", str(interrupted), *FREE_PORTS, start_new_session=True)
        lines = follow(demo)
        wait_for_line(lines, phase)
        time.sleep(1.5)
        os.killpg(demo.pid, signal.SIGHUP)
        assert demo.wait(60) == 130, lines
        assert_nothing_left(interrupted)
        assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("phase", ["starting", pytest.param("training", marks=pytest.mark.soak)])
def test_a_process_manager_killed_with_9_takes_its_processes_along(
    deploy, interrupted, tmp_path, phase
):
    """Processes that the manager has just started, and that do not run Airflow yet, end too."""
    if phase == "training":
        # In the shared folder, the interrupted run of an earlier demo might train first.
        interrupted = tmp_path / "state"
    demo = deploy("demo", "--state", str(interrupted), *FREE_PORTS, start_new_session=True)
    lines = follow(demo)
    wait_for_line(lines, PHASES[phase])
    supervisord_process(State(interrupted)).kill()
    assert demo.wait(60) == 1
    assert sum(line.startswith("error: the process manager") for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
    assert_nothing_left(interrupted, seconds=15)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    return tmp_path_factory.mktemp("interrupted") / "state"


def follow(process) -> list[str]:
    """Collect what the process prints on both streams, while it runs."""
    lines: list[str] = []
    for stream in (process.stdout, process.stderr):
        threading.Thread(target=_collect, args=(stream, lines), daemon=True).start()
    return lines


def _collect(stream, lines: list[str]) -> None:
    with contextlib.suppress(ValueError):  # the stream is closed when the test ends
        lines.extend(stream)


def wait_for_line(lines: list[str], start: str | tuple[str, ...], seconds: float = 180.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not any(line.startswith(start) for line in list(lines)):
        assert time.monotonic() < give_up_at, lines
        time.sleep(0.05)
