"""JSON records. A stage writes its record last, so an output folder with a record is complete."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from music_genre.errors import InputError
from music_genre.store import files


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write one JSON object atomically, indented so that people can read it."""
    files.write_text(path, json.dumps(record, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read one JSON object; None if there is no such file.

    Raises:
        InputError: the file does not contain a JSON object.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(
            f"{path}: not JSON ({error}); delete the file and rerun the stage that wrote it"
        ) from None
    if not isinstance(record, dict):
        raise InputError(
            f"{path}: not a JSON object; delete the file and rerun the stage that wrote it"
        )
    return record


def read_record(path: Path, remedy: str) -> dict[str, Any]:
    """Read the record of a complete output folder.

    Raises:
        InputError: there is no record; the message ends with `remedy`, which says what to do.
    """
    record = read_json(path)
    if record is None:
        raise InputError(f"{path.parent}: contains no {path.name}; {remedy}")
    return record
