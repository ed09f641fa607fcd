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
"""Increase this number whenever a code change alters the catalogue of an unchanged folder."""

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
    """Whether the catalogue lists pictures instead of audio files."""
    tracks: list[Track]
    rejections: list[Rejection]
    scanned_at: float
    """Start time of the scan that wrote this catalogue, in seconds since 1970."""


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
        folder: holds one folder of files per genre. A `tracks.csv` (columns path, track_id,
            artist) in `folder` or beside it can name the recording each file was cut from.
        store: the artifact folder; the catalogue is written to `catalogues/KEY` in it.
        kind: the kind of files to list; all other files are rejected.
        into: the folder to write the catalogue to, instead of `catalogues/KEY`.
        progress: called with (files done, total files), while hashing and again while checking.

    Returns:
        The catalogue's address, its counts, its genres, and whether it already existed.

    Raises:
        InputError: the folder is missing, is not laid out in genre folders, or holds no usable
            file.
    """
    began = time.time()
    paths = find_files(folder, kind, without=store)
    # A tracks.csv that lists audio files is also used for pictures of these files. A picture has
    # the name of its audio file with another suffix, so for pictures the suffix is ignored.
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
    """Return the name of the field in catalogue.json that stores the scanned folder."""
    return "audio" if kind is AUDIO else "pictures"


def _write(tasks: list[Task], made: Path, progress: Progress) -> dict[str, Any]:
    """Check every file, write catalogue.csv and rejected.csv, and return the counts."""
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
            f"{tasks[0].folder}: none of the {len(tasks)} files can be used (the first: "
            f"{rejections[0].path}: {rejections[0].reason}); fix the files or give another folder"
        )
    if rejections:
        logger.warning(
            "%d of %d files are rejected; the reasons are in %s",
            *(len(rejections), len(tasks), made / "rejected.csv"),
        )
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
    """Compare a file with its checksum from the scan; do nothing if the checksum is empty.

    Raises:
        InputError: the contents have changed since the scan.
    """
    if checksum and keys.file_checksum(file) != checksum:
        raise InputError(f"{file}: has changed since the scan; scan again")


def check_unchanged(folder: Path, track: Track, scanned_at: float) -> str:
    """Reject a file that is gone or whose size has changed since the scan.

    Returns:
        The checksum from the scan, for `check_contents`, if the contents might have changed since
        then; else an empty string.

    Raises:
        InputError: the file is gone or has another size.
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
    # ctime, not mtime: the kernel updates ctime at each change. A program that copies files can set
    # mtime back to an old time, but not ctime.
    return track.checksum if found.st_ctime > scanned_at - CLOCKS_DIFFER_SECONDS else ""


def find_files(folder: Path, kind: Kind = AUDIO, without: Path | None = None) -> list[str]:
    """List the visible entries of all genre folders, sorted, as paths relative to `folder`.

    Args:
        folder: holds the genre folders.
        kind: the expected kind of files; it only affects which layout errors are raised.
        without: a subfolder to skip, because it is not a genre.

    Raises:
        InputError: the folder is missing or holds no genre folders with files.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; give the folder that contains the genre folders"
        )
    entries = [entry for entry in _visible(folder) if entry != without]
    genres = [entry for entry in entries if addresses.is_folder(entry)]
    if [genre.name for genre in genres] == [kind.wrapper]:
        raise InputError(
            f"{folder}: contains {kind.wrapper}, not genre folders; give {folder / kind.wrapper}"
        )
    found = [entry.relative_to(folder).as_posix() for genre in genres for entry in _entries(genre)]
    if not found:
        raise InputError(
            f"{folder}: has no subfolder with files; arrange files as "
            f"<genre>/<track>.{kind.example}"
        )
    return found


def _entries(genre: Path) -> list[Path]:
    """List a genre folder; if it is unreadable, return only the folder, to be rejected later."""
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
    """Call `function` in worker processes; return a result or `Failure` per task, in order."""
    results: list[Any] = [None] * len(tasks)
    outcomes = workers.run(function, tasks, n_workers=usable_cores(), seconds=seconds)
    for done, (number, outcome) in enumerate(outcomes, start=1):
        results[number] = outcome
        progress(done, len(tasks))
    return results
