"""Locks that a process holds while it computes: on a folder that it writes and on its GPU.

A lock is a file that its holder has locked with flock, which the kernel releases when the holder
dies, however it dies, and which processes in all containers of a host see. A shared volume may
not carry flock from host to host, so the holder also renews a lease, the file's time; a newcomer
on another host believes the lease until it is old.
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
"""A holder on another host that has not renewed its lease for so long is taken for dead."""
RENEWALS: Final = 6
"""Renewals in the time of a lease."""
WITHOUT_FLOCK: Final = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}
ENDING_SECONDS: Final = 5.0
"""How long a GPU's orphaned holder may take to be gone after SIGKILL."""


class Lock:
    """A held lock."""

    def __init__(self, path: Path, descriptor: int, what: str) -> None:
        """Write this process into an open lock file."""
        self.path, self._descriptor, self._what = path, descriptor, what
        self._record = {"holder": uuid.uuid4().hex, **_this_process()}
        self._record["device"] = os.fstat(descriptor).st_dev
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(self._record).encode(), 0)
        os.fsync(descriptor)

    def check(self) -> None:
        """Make sure that nobody took the lock over while this process stood still.

        Raises:
            TemporaryError: somebody did.
        """
        found = _read(self.path)
        if found.get("holder") != self._record["holder"]:
            raise TemporaryError(
                f"{self._what}: {_describe(found)} took it over while this process stood still; "
                "nothing more was written"
            )

    def renew(self) -> None:
        """Say that the holder lives."""
        with contextlib.suppress(OSError):  # storage that is away for a moment; check() decides
            os.utime(self._descriptor)

    def release(self) -> None:
        """Give the lock to whoever wants it."""
        with contextlib.suppress(OSError, TemporaryError):
            self.check()
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


@contextmanager
def folder_lock(folder: Path, lease_seconds: float = LEASE_SECONDS) -> Iterator[Lock]:
    """Hold a folder, so that no second process writes into it.

    Raises:
        TemporaryError: another process holds it.
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
    """Hold a GPU, so that no second training computes on it.

    A holder whose supervisor is gone is ended: nobody waits for its result any more.

    Args:
        gpu: its UUID.
        folder: the same for all containers of a host.

    Raises:
        TemporaryError: a process that is looked after holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):  # another user made it
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
            logger.info("%s: going on after %s, which has ended", what, _describe(found))
        return Lock(path, descriptor, what)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def _open(path: Path) -> int:
    """Open a lock file, or make one that every user may open."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        # Without O_CREAT: in a folder for all, Linux refuses that for another user's file.
        return os.open(path, flags)
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL)
    except FileExistsError:  # another process was quicker
        return os.open(path, flags)
    os.fchmod(descriptor, 0o666)
    return descriptor


def _same_flocks(found: dict[str, Any], descriptor: int) -> bool:
    """Tell whether a holder's flock would be seen here: same kernel, same mount of the storage."""
    device = os.fstat(descriptor).st_dev
    return bool(found["boot"] == _this_process()["boot"] and found["device"] == device)


def _flock(descriptor: int) -> bool | None:
    """Lock a file; False where another process has it, None where the storage knows no locks."""
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
    """Read the clock that stamps files in a folder; it may be another host's."""
    with tempfile.TemporaryFile(dir=path.parent, prefix=".tmp-") as file:
        return os.fstat(file.fileno()).st_mtime


def _read(path: Path) -> dict[str, Any]:
    """Read a lock file; empty where nobody holds it or its holder is just writing it."""
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
    return f"process {found['pid']} on {found['host']} since {found['since']} UTC"


def _end_orphan(path: Path, what: str) -> None:
    """Kill the holder of a lock that lost its supervisor, if this process can see it."""
    found = _read(path)
    if not found or not _is_orphan(found) or not _holds(path):
        return
    try:
        process = os.pidfd_open(found["pid"])
    except ProcessLookupError:
        return
    try:
        # Through a descriptor, so that a process that got its number meanwhile is never hit.
        if _is_orphan(found):
            logger.warning("%s: ending %s, which lost its supervisor", what, _describe(found))
            with contextlib.suppress(PermissionError):  # another user's; then it is in use
                signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], ENDING_SECONDS)
    finally:
        os.close(process)


def _is_orphan(found: dict[str, Any]) -> bool:
    """Tell whether the process that wrote a lock lives here and has lost its supervisor."""
    own = _this_process()
    if not found["supervisor"] or any(found[name] != own[name] for name in ("boot", "processes")):
        return False
    pid = found["pid"]
    return bool(_started(pid) == found["started"] and _parent(pid) != found["supervisor"])


def _holds(path: Path) -> bool:
    """Tell whether a process has the file locked: then the one that it names lives."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _flock(descriptor) is False
    finally:
        os.close(descriptor)


def _parent(pid: int) -> int:
    """Read a process's parent; 0 where it is gone."""
    return int(_status(pid)[1])


def _started(pid: int) -> int:
    """Read when a process began, in clock ticks since boot; 0 where it is gone."""
    return int(_status(pid)[19])


def _status(pid: int) -> list[str]:
    """Read the fields of /proc/PID/stat from the third on, the state; zeros where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["0"] * 50
