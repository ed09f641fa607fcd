"""Workers: if a task kills its worker process, only that task fails."""

import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from music_genre.audio import workers
from music_genre.errors import TemporaryError


def crash(_: str) -> None:
    faulthandler.disable()  # pytest's fault handler would print a long trace
    ctypes.string_at(0)


def crash_once(mark: str) -> None:
    if not Path(mark).exists():
        Path(mark).touch()
        crash(mark)


def abort(_: str) -> None:
    faulthandler.disable()
    os.abort()


def spin(_: str) -> None:
    while True:
        pass


def fail(name: str) -> None:
    raise OSError(28, "No space left on device", name)


def touch(mark: str) -> None:
    time.sleep(0.3)
    Path(mark).touch()


VERBS = {
    "crash": crash,
    "crash_once": crash_once,
    "abort": abort,
    "exit": lambda code: os._exit(int(code)),
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "spin": spin,
    "sleep": lambda seconds: time.sleep(float(seconds)),
    "fail": fail,
    "touch": touch,
}


def work(task: str) -> str:
    """Call the function that the task names; returns the task in upper case."""
    verb, _, argument = task.partition(" ")
    VERBS.get(verb, str)(argument)
    return task.upper()


def run(tasks: list[str], n_workers: int = 2, seconds: float = 30.0) -> dict[str, object]:
    outcomes = workers.run(work, tasks, n_workers=n_workers, seconds=lambda task: seconds)
    return {tasks[number]: outcome for number, outcome in outcomes}


@pytest.mark.parametrize("n_workers", [1, 2, 5, 13])
def test_every_task_is_done_once(n_workers: int) -> None:
    tasks = [f"task {number}" for number in range(12)]
    assert run(tasks, n_workers) == {task: task.upper() for task in tasks}
    assert run([], n_workers) == {}


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("crash", "its decoder crashed (SIGSEGV)"),
        ("abort", "its decoder crashed (SIGABRT)"),
        ("exit 3", "its decoder exited (exit code 3)"),
    ],
)
@pytest.mark.parametrize("n_workers", [1, 3])
def test_a_crash_takes_its_own_task_only(task: str, reason: str, n_workers: int) -> None:
    tasks = [f"task {number}" for number in range(20)]
    tasks[5:5] = [task]
    tasks[12:12] = [f"{task} "]
    outcomes = run(tasks, n_workers)
    assert outcomes.pop(task) == outcomes.pop(f"{task} ") == workers.Failure(reason)
    assert len(outcomes) == 20
    assert all(outcome == task.upper() for task, outcome in outcomes.items())


def test_a_crash_that_does_not_repeat_is_forgiven(tmp_path: Path) -> None:
    task = f"crash_once {tmp_path / 'x'}"
    assert run(["a", task, "b"]) == {"a": "A", task: task.upper(), "b": "B"}


def test_a_hang_is_ended_and_a_wait_is_not() -> None:
    began = time.monotonic()
    outcomes = run(["a", "spin", "sleep 3", "b"], seconds=1.0)
    assert time.monotonic() - began < 30
    assert outcomes["spin"] == workers.Failure(
        "its decoder hung: it took more than 1 s of processor time"
    )
    assert outcomes["sleep 3"] == "SLEEP 3"


def test_a_task_has_its_time_for_itself() -> None:
    """A task's time limit counts from the start of the task, not of the worker."""

    def busy(_: int) -> float:
        until = time.process_time() + 0.4
        while time.process_time() < until:
            pass
        return 1.0

    done = list(workers.run(busy, range(8), n_workers=1, seconds=lambda task: 2.0))
    assert sorted(done) == [(number, 1.0) for number in range(8)]


def test_a_kill_from_outside_is_no_fault_of_the_task() -> None:
    with pytest.raises(TemporaryError, match="fewer --workers"):
        run(["a", "kill", "b"])


def test_an_error_ends_the_batch_when_the_others_are_done(tmp_path: Path) -> None:
    marks = [tmp_path / str(number) for number in range(50)]
    with pytest.raises(OSError, match="No space left on device: 'disk'") as caught:
        run(["fail disk", *(f"touch {mark}" for mark in marks)])
    time.sleep(1.0)
    assert 1 <= sum(mark.exists() for mark in marks) <= 3
    assert "in fail" in caught.value.__notes__[0]
    assert not os.path.exists("core")  # noqa: PTH110


def test_the_unasked_for_are_not_done(tmp_path: Path) -> None:
    outcomes: Iterator = workers.run(
        work, ["a", *("sleep 0.1" for _ in range(500))], n_workers=1, seconds=lambda task: 9.0
    )
    began = time.monotonic()
    assert next(outcomes) == (0, "A")
    outcomes.close()
    assert time.monotonic() - began < 20


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    program = (
        "import os, time; from music_genre.audio import workers\n"
        "def work(name): open(name, 'w').write(str(os.getpid())); time.sleep(60)\n"
        f"list(workers.run(work, [{str(tmp_path / 'a')!r}, {str(tmp_path / 'b')!r}], "
        "n_workers=2, seconds=lambda task: 60))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    names = [tmp_path / "a", tmp_path / "b"]
    deadline = time.monotonic() + 30
    while not all(path.exists() and path.read_text() for path in names):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    for path in names:
        while Path("/proc", path.read_text()).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
