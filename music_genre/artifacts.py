"""Addresses, content keys and safe writes: where every stage finds and leaves its files.

The only module that knows what an address looks like. An output folder is complete when its
JSON record, written last, is there.
"""

import csv
import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, TypeVar, get_type_hints

from music_genre.errors import InputError

Row = TypeVar("Row")


def local_path(address: str | os.PathLike[str]) -> Path:
    """Turn an address into an absolute local path.

    Raises:
        InputError: the address names a storage that cannot be read.
    """
    text = os.fspath(address)
    if "://" in text:
        raise InputError(f"{text}: only local folders can be read; give a path on a shared volume")
    return Path(text).absolute()


def content_key(*parts: Any) -> str:
    """Name contents by 12 hexadecimal digits of BLAKE2b over their canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode("ascii"), digest_size=6).hexdigest()


def file_checksum(path: Path) -> str:
    """Hash a file's bytes: 32 hexadecimal digits of BLAKE2b."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name complete and on the disk, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")  # short: long names must fit too
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
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
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
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
