"""Files that exist either complete or not at all."""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

TEMPORARY = ".tmp-"
"""Prefix of the names of unfinished files."""
STALE_SECONDS = 24 * 3600.0


@contextmanager
def atomic_write(
    path: Path, final: Callable[[], Path] | None = None, *, lasting: bool = True
) -> Iterator[IO[bytes]]:
    """Open a file that gets its name only when it is complete and on the disk.

    Args:
        path: the final name of the file.
        final: returns the name to use instead of `path`, in the same folder; called after the
            contents are written.
        lasting: also sync the file's name to the disk. With False, the caller must call
            `sync_folder`; one call is enough for many files.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; the error names
            the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Do not add a prefix to `path.name`: the result could exceed the maximum length of a name.
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(final() if final else path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in {None, str(temporary)}:
            error.filename = str(path)
        raise
    if lasting:
        sync_folder(path.parent)


def sweep(folder: Path, *, locked: bool = False) -> None:
    """Remove the unfinished files that killed processes left in a folder.

    Files younger than a day are kept, because a running process might still write them. Older
    files are not in use: no write takes a day, and no clock is wrong by a day. A caller that holds
    a lock on the folder passes `locked` to remove files of any age.
    """
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            if path.name.startswith(TEMPORARY):
                with suppress(FileNotFoundError):  # another process removed it
                    if locked or path.stat().st_mtime < time.time() - STALE_SECONDS:
                        path.unlink()


def sync_folder(folder: Path) -> None:
    """Sync a folder to the disk, so that the names of its files survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write text atomically; if it contains file names that are not UTF-8, their bytes are kept."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))
