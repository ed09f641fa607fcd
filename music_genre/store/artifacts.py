"""Addresses, content keys and safe writes: where every stage finds and leaves its files.

The only module that knows what an address looks like. An output folder is complete when its
JSON record, written last, is there.
"""

import csv
import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, TypeVar, get_type_hints

from music_genre.errors import InputError

Row = TypeVar("Row")

TEMPORARY = ".tmp-"
"""How names of unfinished files begin."""
STALE_SECONDS = 24 * 3600.0


def local_path(address: str | os.PathLike[str]) -> Path:
    """Turn an address into an absolute local path.

    Raises:
        InputError: the address names a storage that cannot be read.
    """
    text = os.fspath(address)
    if "://" in text:
        raise InputError(f"{text}: only local folders can be read; give a path on a shared volume")
    return Path(text).absolute()


def is_folder(path: Path) -> bool:
    """Tell whether a path leads to a folder; where it cannot be looked at, it does not."""
    try:
        return path.is_dir()
    except OSError:  # too long a name, a folder above that may not be searched
        return False


def content_key(*parts: Any) -> str:
    """Name contents by 12 hexadecimal digits of BLAKE2b over their canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode("ascii"), digest_size=6).hexdigest()


def file_checksum(path: Path) -> str:
    """Hash a file's bytes: 32 hexadecimal digits of BLAKE2b."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


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


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write one JSON object atomically, for people to read."""
    write_text(path, json.dumps(record, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read one JSON object; None where there is no such file.

    Raises:
        InputError: the file holds something else.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete it and run its stage again") from None
    if not isinstance(record, dict):
        raise InputError(f"{path}: not a JSON object; delete it and run its stage again")
    return record


def read_record(path: Path, remedy: str) -> dict[str, Any]:
    """Read the record of a complete output folder.

    Raises:
        InputError: there is none; `remedy` says which stage makes it.
    """
    record = read_json(path)
    if record is None:
        raise InputError(f"{path.parent}: holds no {path.name}; {remedy}")
    return record


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a CSV file atomically, with a header and Unix line ends."""
    with atomic_write(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        plain = csv.DictWriter(text, columns, lineterminator="\n")
        quoted = csv.DictWriter(text, columns, lineterminator="\n", quoting=csv.QUOTE_ALL)
        plain.writeheader()
        for row in rows:  # the csv module quotes no lone carriage return, and reads a line's end
            has_return = any("\r" in str(value) for value in row.values())
            (quoted if has_return else plain).writerow(row)
        text.detach()  # flushes and leaves the file open for atomic_write to sync


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header.

    Raises:
        InputError: it is missing or not text.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the address") from None
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file ({error}); write it as UTF-8 text") from None


def write_rows(path: Path, kind: type[Any], rows: Iterable[Any]) -> None:
    """Write rows of a dataclass as a CSV file."""
    columns = [field.name for field in fields(kind)]
    write_table(path, ({name: getattr(row, name) for name in columns} for row in rows), columns)


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read rows of a dataclass of texts, integers and floats.

    Raises:
        InputError: the file is missing or has other columns.
    """
    casts = get_type_hints(kind)
    try:
        return [
            kind(**{name: casts[name](text) for name, text in row.items()})
            for row in read_table(path)
        ]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path}: not as this version writes it; delete its folder and run its stage again"
        ) from None


def reference(target: Path, base: Path) -> str:
    """Write `target` so that it is still found when both folders move or are mounted elsewhere.

    Relative to `base` where they share a parent other than the root, else absolute.
    """
    common = os.path.commonpath([target.absolute(), base.absolute()])
    if common == os.path.sep:
        return str(target.absolute())
    return os.path.relpath(target.absolute(), base.absolute())


def resolve(written: str, base: Path) -> Path:
    """Find what `reference` wrote, from the same base folder."""
    return Path(os.path.normpath(base.absolute() / written))
