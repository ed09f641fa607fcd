"""Signals: a long step cannot delay a stop, and a child ends when its parent dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from music_genre.store import signals

GRACE = signals.GRACE  # of started processes; conftest.py lengthens the grace of this process

STEPS = """
import sys, time
from music_genre.store import signals
with signals.stops(lambda: "at step 3") as stop:
    print("begun", flush=True)
    while not stop.name:
        time.sleep(0.05)
    print("heeded", stop.name, flush=True)
"""
# One C call that takes minutes and lets other threads run, like a backward pass.
LONG_STEP = """
import hashlib
from music_genre.store import signals
with signals.stops(lambda: "at step 3, saved up to step 1"):
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha512", b"", b"", 10**9)
"""


def start(code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", signals.STOPPING)
def test_between_steps_the_loop_itself_heeds_a_stop(number: signal.Signals) -> None:
    process = start(STEPS)
    process.send_signal(number)
    began = time.monotonic()
    stdout, stderr = process.communicate(timeout=20)
    assert time.monotonic() - began < GRACE
    assert (process.returncode, stdout, stderr) == (0, f"heeded {number.name}\n", "")


@pytest.mark.parametrize("number", signals.STOPPING)
def test_a_stop_within_a_long_step_ends_the_process_all_the_same(number: signal.Signals) -> None:
    process = start(LONG_STEP)
    process.send_signal(number)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=20)
    assert GRACE < time.monotonic() - began < GRACE + 10
    assert process.returncode == (-signal.SIGINT if number == signal.SIGINT else 75)
    line = f"error: stopped by {number.name} at step 3, saved up to step 1; {signals.GO_ON}"
    assert stderr == f"{line}\n"


def test_a_stop_whose_reader_is_gone_ends_the_process_all_the_same() -> None:
    process = start(LONG_STEP)
    assert process.stderr
    process.stderr.close()
    process.terminate()
    with process:
        assert process.wait(timeout=20) == 75


def test_handlers_are_as_before_when_the_steps_are_over() -> None:
    before = [signal.getsignal(number) for number in signals.STOPPING]
    with signals.stops(str) as stop:
        assert not stop.name
    assert [signal.getsignal(number) for number in signals.STOPPING] == before
    assert signal.set_wakeup_fd(-1) == -1


CHILD = """
import signal, sys, time
from music_genre.store import signals
signals.die_with_parent(signal.SIGKILL)
print("begun", flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), child.pid, flush=True)
time.sleep(600)
"""


def orphan(ignored: signal.Handlers) -> int:
    """Start a parent with a child, kill the parent, and return the child's pid."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, ignored),
    )
    assert parent.stdout
    begun, pid = parent.stdout.readline().split()
    assert begun == "begun"
    parent.kill()
    parent.communicate()
    return int(pid)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_child_is_gone_within_a_second_of_its_parent() -> None:
    pid = orphan(signal.SIG_DFL)
    deadline = time.monotonic() + 1
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not lives(pid)


def test_under_nohup_it_outlives_its_parent() -> None:
    pid = orphan(signal.SIG_IGN)
    time.sleep(1)
    assert lives(pid)
    os.kill(pid, signal.SIGKILL)
