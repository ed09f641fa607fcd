"""Turn a folder of genre folders into a catalogue of its files and a list of rejections."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from music_genre.audio import origins, workers
from music_genre.audio.inspection import AUDIO, Contents, Kind, Task, Track, inspect, read_contents
from music_genre.errors import InputError
from music_genre.progress import Progress, silent
from music_genre.resources import usable_cores
from music_genre.store import addresses, keys, records, tables

logger = logging.getLogger(__name__)

RECIPE = 2
"""Increase this when the same folder would give a different catalogue."""

CLOCKS_DIFFER_SECONDS = 5.0
"""Largest expected difference between the clocks of the scanning host and the storage."""
HASHING_SECONDS = 24 * 3600.0
"""Limit in CPU seconds for hashing a file. No file reaches it, because hashing cannot hang."""


@dataclass(frozen=True)
class Rejection:
    """One file that cannot be used; a row of rejected.csv."""

    path: str
    reason: str


@dataclass(frozen=True)
class Catalogue:
    """The catalogue that `scan` wrote."""

    folder: Path
    """The scanned folder."""
    has_pictures: bool
    """Whether it lists pictures, not audio files."""
    tracks: list[Track]
    rejections: list[Rejection]
    scanned_at: float
    """When the scan that wrote it began, in seconds since 1970."""


def scan(
    folder: Path,
    store: Path,
    *,
    kind: Kind = AUDIO,
    into: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Catalogue a folder of genre folders.

    Args:
        folder: holds one folder of files per genre; a `tracks.csv` (columns path, track_id,
            artist) in it or beside it says which recording each file was cut from.
        store: the artifact folder; the catalogue gets a folder of its own in it.
        kind: the kind of files to list; all others are rejected.
        into: put the catalogue here instead.
        progress: called with (files done, total files), while hashing and again while checking.

    Returns:
        The result: catalogue address, counts, genres, and whether it already existed.

    Raises:
        InputError: the folder is missing, has another layout, or holds no readable track.
    """
    began = time.time()
    paths = find_files(folder, kind, without=store)
    # tracks.csv may list audio files; their pictures have the same names but other suffixes.
    known = origins.read_table(folder, paths, any_suffix=kind is not AUDIO)
    tasks = [Task(kind, folder, path, known.get(path)) for path in paths]
    read = _in_workers(read_contents, tasks, lambda _: HASHING_SECONDS, progress)
    tasks = [
        replace(task, contents=each) if isinstance(each, Contents) else task
        for task, each in zip(tasks, read, strict=True)
    ]
    listing = [[task.path, task.contents.checksum, task.origin] for task in tasks]
    which = [] if kind is AUDIO else [kind.name]
    key = keys.content_key(RECIPE, listing, *which)
    made = into or store / "catalogues" / key
    record = records.read_json(made / "catalogue.json") or {}
    reused = record.get("key") == key
    if not reused:
        record = {"key": key, "scanned_at": began, **_write(tasks, made, progress)}
    location = addresses.reference(folder, made)
    if record.get(_place(kind)) != location:
        record = {**record, _place(kind): location}
        records.write_json(made / "catalogue.json", record)
    shown = {name: record[name] for name in ("n_tracks", "n_rejected", "genres")}
    return {"catalogue": str(made), **shown, "reused": reused}


def _place(kind: Kind) -> str:
    """Return the key of catalogue.json under which the location of the files is stored."""
    return "audio" if kind is AUDIO else "pictures"


def _write(tasks: list[Task], made: Path, progress: Progress) -> dict[str, Any]:
    """Check every file, write both tables and return the counts."""
    kind = tasks[0].kind
    inspected = _in_workers(
        inspect, tasks, lambda task: kind.patience(task.contents.n_bytes), progress
    )
    tracks = [each for each in inspected if isinstance(each, Track)]
    rejections = [
        Rejection(task.path, each.reason)
        for task, each in zip(tasks, inspected, strict=True)
        if not isinstance(each, Track)
    ]
    if not tracks:
        raise InputError(
            f"{tasks[0].folder}: none of its {len(tasks)} files can be used (the first: "
            f"{rejections[0].path}: {rejections[0].reason}); fix them or give another folder"
        )
    if rejections:
        logger.warning("%d of %d files rejected; see rejected.csv", len(rejections), len(tasks))
    tables.write_rows(made / "rejected.csv", Rejection, rejections)
    tables.write_rows(made / "catalogue.csv", Track, tracks)
    genres = dict(sorted(Counter(track.genre for track in tracks).items()))
    return {"n_tracks": len(tracks), "n_rejected": len(rejections), "genres": genres}


def read_catalogue(made: Path) -> Catalogue:
    """Read a catalogue that `scan` wrote.

    Raises:
        InputError: the folder is not a catalogue.
    """
    record = records.read_record(made / "catalogue.json", "give the address that scan printed")
    has_pictures = "pictures" in record
    return Catalogue(
        folder=addresses.resolve(record["pictures" if has_pictures else "audio"], made),
        has_pictures=has_pictures,
        tracks=tables.read_rows(made / "catalogue.csv", Track),
        rejections=tables.read_rows(made / "rejected.csv", Rejection),
        scanned_at=float(record.get("scanned_at", 0.0)),
    )


def check_contents(file: Path, checksum: str) -> None:
    """Reject a file whose contents have changed since the scan; an empty checksum skips the check.

    Raises:
        InputError: they have changed.
    """
    if checksum and keys.file_checksum(file) != checksum:
        raise InputError(f"{file}: has changed since the scan; scan again")


def check_unchanged(folder: Path, track: Track, scanned_at: float) -> str:
    """Reject a file that is gone or whose size has changed since the scan.

    Returns:
        The checksum that the file must still have, if the file may have changed since the scan;
        else an empty string.

    Raises:
        InputError: it is gone, or has another size.
    """
    file = folder / track.path
    try:
        found = file.stat()
    except FileNotFoundError:
        raise InputError(
            f"{file}: has disappeared since the scan; put it back or scan again"
        ) from None
    if found.st_size != track.n_bytes:
        raise InputError(
            f"{file}: has {found.st_size} bytes, but had {track.n_bytes} when scanned; scan again"
        )
    # ctime, not mtime: the kernel sets it at each change, and copying cannot restore the old one.
    return track.checksum if found.st_ctime > scanned_at - CLOCKS_DIFFER_SECONDS else ""


def find_files(folder: Path, kind: Kind = AUDIO, without: Path | None = None) -> list[str]:
    """List everything in the genre folders, sorted, relative to `folder`.

    Args:
        folder: holds the genre folders.
        kind: only for the wording of errors.
        without: a folder to skip, because it is not a genre.

    Raises:
        InputError: the folder is missing or holds no genre folders with files.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that holds the genre folders")
    entries = [entry for entry in _visible(folder) if entry != without]
    genres = [entry for entry in entries if addresses.is_folder(entry)]
    if [genre.name for genre in genres] == [kind.wrapper]:
        raise InputError(
            f"{folder}: holds {kind.wrapper}, not genre folders; give {folder / kind.wrapper}"
        )
    found = [entry.relative_to(folder).as_posix() for genre in genres for entry in _entries(genre)]
    if not found:
        raise InputError(
            f"{folder}: has no subfolder with files; lay it out as <genre>/<track>.{kind.example}"
        )
    return found


def _entries(genre: Path) -> list[Path]:
    """List a genre's folder; return an unreadable folder itself, so that it is rejected later."""
    try:
        return _visible(genre)
    except OSError:
        return [genre]


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _in_workers(
    function: Callable[[Task], Any],
    tasks: list[Task],
    seconds: Callable[[Task], float],
    progress: Progress,
) -> list[Any]:
    """Return each task's result, or why its process died, in the order of the tasks."""
    results: list[Any] = [None] * len(tasks)
    outcomes = workers.run(function, tasks, n_workers=usable_cores(), seconds=seconds)
    for done, (number, outcome) in enumerate(outcomes, start=1):
        results[number] = outcome
        progress(done, len(tasks))
    return results
