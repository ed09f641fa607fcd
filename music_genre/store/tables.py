"""CSV files whose rows are dataclasses or dictionaries."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from music_genre.errors import InputError
from music_genre.store import files

Row = TypeVar("Row")


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a CSV file atomically, with a header and Unix line ends."""
    with files.atomic_write(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        plain = csv.DictWriter(text, columns, lineterminator="\n")
        quoted = csv.DictWriter(text, columns, lineterminator="\n", quoting=csv.QUOTE_ALL)
        plain.writeheader()
        # The csv module writes a lone carriage return unquoted, but reads it as the end of a row.
        # So all values of a row that contains a carriage return are quoted.
        for row in rows:
            has_return = any("\r" in str(value) for value in row.values())
            (quoted if has_return else plain).writerow(row)
        text.detach()  # flush, but do not close: atomic_write syncs the open file


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header.

    Raises:
        InputError: the file is missing or not a CSV file.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the address") from None
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file ({error}); save it as CSV in UTF-8") from None


def write_rows(path: Path, kind: type[Any], rows: Iterable[Any]) -> None:
    """Write instances of a dataclass as the rows of a CSV file."""
    columns = [field.name for field in fields(kind)]
    write_table(path, ({name: getattr(row, name) for name in columns} for row in rows), columns)


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read the rows of a CSV file as instances of a dataclass of strings, integers and floats.

    Raises:
        InputError: the file is missing, or its rows do not fit the fields of the dataclass.
    """
    casts = get_type_hints(kind)
    try:
        return [
            kind(**{name: casts[name](text) for name, text in row.items()})
            for row in read_table(path)
        ]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path}: not in the format of this version of music-genre; delete its folder and "
            "rerun the stage that wrote the file"
        ) from None
