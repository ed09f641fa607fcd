"""Files that are there whole or not at all."""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

TEMPORARY = ".tmp-"
"""How names of unfinished files begin."""
STALE_SECONDS = 24 * 3600.0


@contextmanager
def atomic_write(
    path: Path, final: Callable[[], Path] | None = None, *, lasting: bool = True
) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name complete and on the disk, or not at all.

    Args:
        path: its name.
        final: tells its name instead, in the same folder, once the contents are written.
        lasting: its name, too, is on the disk at the end; else call `sync_folder` after many.

    Raises:
        OSError: it cannot be written, for example because the disk is full; names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")  # short: long names must fit too
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
    """Remove what processes that were killed left half-written in a folder.

    Younger files may be in somebody's work; a day is beyond any write and any clock's error. Who
    holds a lock on the folder may sweep files of any age.
    """
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            if path.name.startswith(TEMPORARY):
                with suppress(FileNotFoundError):  # another swept it
                    if locked or path.stat().st_mtime < time.time() - STALE_SECONDS:
                        path.unlink()


def sync_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write text atomically; names that are no UTF-8 keep their bytes."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))
