"""Locks that a process holds while it computes: on a folder that it writes and on its GPU.

A holder locks a file with flock. Processes in all containers of a host see that lock. The kernel
releases it when the holder ends, even after a crash. Some shared volumes do not pass flock to other
hosts, so the holder of a folder lock also renews a lease: the lock file's modification time. A
process on another host respects the lease until it expires.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import select
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from music_genre.errors import TemporaryError

logger = logging.getLogger(__name__)

LEASE_SECONDS: Final = 60.0
"""A holder on another host that has not renewed its lease for this long is considered dead."""
RENEWALS: Final = 6
"""Renewals per lease period."""
WITHOUT_FLOCK: Final = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}
ENDING_SECONDS: Final = 5.0
"""Maximum seconds to wait until an orphaned process that held a GPU lock has died of SIGKILL."""


class Lock:
    """A lock that this process holds."""

    def __init__(self, path: Path, descriptor: int, what: str) -> None:
        """Record this process as the holder in an open lock file."""
        self.path, self._descriptor, self._what = path, descriptor, what
        self._record = {"holder": uuid.uuid4().hex, **_this_process()}
        self._record["device"] = os.fstat(descriptor).st_dev
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(self._record).encode(), 0)
        os.fsync(descriptor)

    def check(self) -> None:
        """Check that no other process took the lock over while this process was suspended.

        Raises:
            TemporaryError: another process took the lock over.
        """
        found = _read(self.path)
        if found.get("holder") != self._record["holder"]:
            raise TemporaryError(
                f"{self._what}: {_describe(found)} took it over while this process was suspended; "
                "nothing more was written"
            )

    def renew(self) -> None:
        """Renew the lease: show that the holder is alive."""
        # Ignore errors while the storage is briefly down; `check` notices if the lock is lost.
        with contextlib.suppress(OSError):
            os.utime(self._descriptor)

    def release(self) -> None:
        """Release the lock, so that another process can take it."""
        with contextlib.suppress(OSError, TemporaryError):
            self.check()
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


@contextmanager
def folder_lock(folder: Path, lease_seconds: float = LEASE_SECONDS) -> Iterator[Lock]:
    """Lock a folder, so that no second process writes into it.

    Raises:
        TemporaryError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _take(folder / ".lock", f"{folder}", lease_seconds)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease_seconds / RENEWALS):
            lock.renew()

    renewer = threading.Thread(target=renew, daemon=True)
    renewer.start()
    try:
        yield lock
    finally:
        ended.set()
        renewer.join()
        lock.release()


@contextmanager
def gpu_lock(gpu: str, folder: Path) -> Iterator[Lock]:
    """Lock a GPU, so that no second process computes on it.

    If another process holds the lock but has lost its supervisor, that process is killed, because
    nobody waits for its result any more.

    Args:
        gpu: the UUID of the GPU.
        folder: the folder of the lock files; all containers of a host must use the same one.

    Raises:
        TemporaryError: another process still holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):  # only the owner of the folder can set its mode
        folder.chmod(0o1777)
    path, what = folder / f"{gpu}.lock", f"GPU {gpu}"
    _end_orphan(path, what)
    lock = _take(path, what, 0.0)
    try:
        yield lock
    finally:
        lock.release()


def _take(path: Path, what: str, lease_seconds: float) -> Lock:
    descriptor = _open(path)
    try:
        free, found = _flock(descriptor), _read(path)
        held = free is False
        if found and not (free and _same_flocks(found, descriptor)):
            held = held or _storage_time(path) - path.stat().st_mtime < lease_seconds
        if held:
            raise TemporaryError(
                f"{what}: in use by {_describe(found)}; wait until it ends, or stop it"
            )
        if found:
            logger.info("%s: taking over from %s, which has ended", what, _describe(found))
        return Lock(path, descriptor, what)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def _open(path: Path) -> int:
    """Open a lock file; if it is missing, create it so that every user can read and write it."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        # No O_CREAT: in a world-writable folder, Linux refuses O_CREAT for another user's file.
        return os.open(path, flags)
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL)
    except FileExistsError:  # another process has just created it
        return os.open(path, flags)
    os.fchmod(descriptor, 0o666)
    return descriptor


def _same_flocks(found: dict[str, Any], descriptor: int) -> bool:
    """Tell whether this process sees the holder's flock.

    It does if both processes run on the same kernel and found the lock file on the same device.
    """
    device = os.fstat(descriptor).st_dev
    return bool(found["boot"] == _this_process()["boot"] and found["device"] == device)


def _flock(descriptor: int) -> bool | None:
    """Try to lock a file; return False if it is locked, None if its storage has no flock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        if error.errno in WITHOUT_FLOCK:
            return None
        raise
    return True


def _storage_time(path: Path) -> float:
    """Return the time of the clock that sets the modification times of files beside `path`.

    On a shared volume, that clock can belong to another host.
    """
    with tempfile.TemporaryFile(dir=path.parent, prefix=".tmp-") as file:
        return os.fstat(file.fileno()).st_mtime


def _read(path: Path) -> dict[str, Any]:
    """Read a lock file; return {} if nobody holds the lock or the holder is still writing."""
    try:
        record = json.loads(path.read_bytes() or b"{}")
    except (ValueError, FileNotFoundError):
        return {}
    return record if isinstance(record, dict) else {}


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "processes": str(Path("/proc/self/ns/pid").readlink()),
        "supervisor": 0 if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else os.getppid(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }


def _describe(found: dict[str, Any]) -> str:
    if not found:
        return "another process"
    return f"process {found['pid']} on {found['host']} (since {found['since']} UTC)"


def _end_orphan(path: Path, what: str) -> None:
    """Kill a lock's holder if it has lost its supervisor and runs in this PID namespace."""
    found = _read(path)
    if not found or not _is_orphan(found) or not _holds(path):
        return
    try:
        process = os.pidfd_open(found["pid"])
    except ProcessLookupError:
        return
    try:
        # Signal by pidfd: if the PID was reused meanwhile, the new process is not killed.
        if _is_orphan(found):
            logger.warning("%s: killing %s, which has lost its supervisor", what, _describe(found))
            # If the process belongs to another user, killing it fails and the GPU stays in use.
            with contextlib.suppress(PermissionError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], ENDING_SECONDS)
    finally:
        os.close(process)


def _is_orphan(found: dict[str, Any]) -> bool:
    """Tell whether a lock file names a process of this PID namespace that lost its supervisor."""
    own = _this_process()
    if not found["supervisor"] or any(found[name] != own[name] for name in ("boot", "processes")):
        return False
    pid = found["pid"]
    return bool(_started(pid) == found["started"] and _parent(pid) != found["supervisor"])


def _holds(path: Path) -> bool:
    """Tell whether the file is locked; if so, the process that the file names is alive."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _flock(descriptor) is False
    finally:
        os.close(descriptor)


def _parent(pid: int) -> int:
    """Return the PID of a process's parent; 0 if the process is gone."""
    return int(_status(pid)[1])


def _started(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot; 0 if the process is gone."""
    return int(_status(pid)[19])


def _status(pid: int) -> list[str]:
    """Read /proc/PID/stat from the third field (state) on; zeros if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["0"] * 50
