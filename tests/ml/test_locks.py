"""Locks: one holder at a time, even if a holder is killed or runs on another host."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from music_genre.errors import TemporaryError
from music_genre.store import locks

HOLD = """
import sys, time
from pathlib import Path
from music_genre.store import locks
kind, folder = sys.argv[1], Path(sys.argv[2])
with locks.folder_lock(folder) if kind == "run" else locks.gpu_lock("GPU-1", folder):
    print("held", flush=True)
    time.sleep(600)
"""


def start_holder(kind: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, kind, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    return holder


def end(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.communicate()


@pytest.mark.parametrize("kind", ["run", "gpu"])
def test_a_second_holder_is_refused_until_the_first_is_killed(kind: str, tmp_path: Path) -> None:
    def take() -> AbstractContextManager[locks.Lock]:
        return locks.folder_lock(tmp_path) if kind == "run" else locks.gpu_lock("GPU-1", tmp_path)

    holder = start_holder(kind, tmp_path)
    with pytest.raises(TemporaryError, match=f"in use by process {holder.pid} on .*wait until"):
        with take():
            pass
    end(holder)
    with take() as lock:
        lock.check()
    with take():
        pass


def test_one_process_cannot_hold_a_run_twice(tmp_path: Path) -> None:
    with locks.folder_lock(tmp_path):
        with pytest.raises(TemporaryError, match="in use by"), locks.folder_lock(tmp_path):
            pass


def test_gpus_are_held_one_by_one(tmp_path: Path) -> None:
    with locks.gpu_lock("GPU-1", tmp_path), locks.gpu_lock("GPU-2", tmp_path):
        pass
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777


def write_lease(folder: Path, age: float) -> Path:
    """Write the lock file that a holder on another host would leave."""
    record = {"holder": "x", "host": "elsewhere", "pid": 7, "boot": "other", "since": "noon"}
    path = folder / ".lock"
    path.write_text(
        json.dumps({**record, "processes": "pid:[1]", "supervisor": 1, "device": 1, "started": 1})
    )
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_another_hosts_lease_is_believed_until_it_is_old(tmp_path: Path) -> None:
    """The other host's flock might not be visible on this host, so only its lease counts."""
    write_lease(tmp_path, age=5)
    with pytest.raises(TemporaryError, match=r"process 7 on elsewhere \(since noon UTC\)"):
        with locks.folder_lock(tmp_path):
            pass
    write_lease(tmp_path, age=locks.LEASE_SECONDS + 5)
    with locks.folder_lock(tmp_path):
        pass


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path) -> None:
    with locks.folder_lock(tmp_path, lease_seconds=0.3):
        path = tmp_path / ".lock"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 5
        while path.stat().st_mtime < time.time() - 60 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.stat().st_mtime > time.time() - 60


def test_who_stood_still_while_another_took_over_notices(tmp_path: Path) -> None:
    with locks.folder_lock(tmp_path) as lock:
        lock.check()
        path = write_lease(tmp_path, age=0)
        with pytest.raises(TemporaryError, match=r"process 7 on elsewhere .* took it over"):
            lock.check()
    assert json.loads(path.read_text())["host"] == "elsewhere"  # not ours, so it is kept


def test_storage_without_locks_is_held_by_leases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with locks.folder_lock(tmp_path):
        with pytest.raises(TemporaryError, match="in use by"), locks.folder_lock(tmp_path):
            pass
    with locks.folder_lock(tmp_path):
        pass


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), child.pid, flush=True)
time.sleep(600)
"""


def test_a_gpus_holder_that_lost_its_supervisor_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, HOLD, "gpu", str(tmp_path)]
    # Under nohup the tests' children would ignore SIGHUP, and so outlive their supervisor.
    heed = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: E731
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed)
    assert supervisor.stdout
    held, pid = supervisor.stdout.readline().split()
    assert held == "held"
    with pytest.raises(TemporaryError, match=f"in use by process {pid}"):
        with locks.gpu_lock("GPU-1", tmp_path):
            pass
    end(supervisor)
    with locks.gpu_lock("GPU-1", tmp_path):
        assert not Path(f"/proc/{pid}/exe").exists()


def test_a_gpus_holder_under_nohup_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, HOLD, "gpu", str(tmp_path)]
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=ignore)
    assert supervisor.stdout
    pid = int(supervisor.stdout.readline().split()[1])
    end(supervisor)
    try:
        with pytest.raises(TemporaryError, match=f"in use by process {pid}"):
            with locks.gpu_lock("GPU-1", tmp_path):
                pass
    finally:
        os.kill(pid, signal.SIGKILL)


def test_an_innocent_process_with_the_number_of_a_dead_holder_is_left_alone(
    tmp_path: Path,
) -> None:
    holder = start_holder("gpu", tmp_path)
    path = tmp_path / "GPU-1.lock"
    record = json.loads(path.read_text())
    innocent = subprocess.Popen(["sleep", "600"])
    try:
        # As if the pid was reused: the record names an unrelated process; `holder` has the lock.
        path.write_text(json.dumps({**record, "pid": innocent.pid, "supervisor": 1}))
        with pytest.raises(TemporaryError, match="in use by"):
            with locks.gpu_lock("GPU-1", tmp_path):
                pass
        assert innocent.poll() is None
    finally:
        end(holder)
        end(innocent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_gpus_lock_is_free_for_every_user(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        with locks.gpu_lock("GPU-1", folder):
            pass
        code = """
import os, sys
from pathlib import Path
from music_genre.store import locks
os.setuid(65534)
with locks.gpu_lock("GPU-1", Path(sys.argv[1])):
    print("held")
"""
        command = [sys.executable, "-c", code, str(folder)]
        assert subprocess.check_output(command, text=True) == "held\n"
    finally:
        shutil.rmtree(folder)
