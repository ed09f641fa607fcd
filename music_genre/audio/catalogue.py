"""Find audio: a folder of genre folders becomes a catalogue and a list of rejections."""

import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from music_genre.audio import decoding, origins, workers
from music_genre.errors import AudioError, InputError
from music_genre.progress import Progress, silent
from music_genre.resources import usable_cores
from music_genre.store import addresses, keys, records, tables

logger = logging.getLogger(__name__)

RECIPE = 2
"""Raise when the same folder would give another catalogue."""

HASHING_SECONDS = 24 * 3600.0
"""Processor time that hashing a file may take: more than any file needs, for it cannot hang."""
SUFFIXES = {
    *(".wav", ".w64", ".caf", ".aif", ".aiff", ".au"),
    *(".flac", ".mp3", ".ogg", ".oga", ".opus"),
}


@dataclass(frozen=True)
class Track:
    """One readable audio file; a row of catalogue.csv."""

    path: str
    """Relative to the audio folder, with forward slashes."""
    genre: str
    track: str
    """The recording it was cut from."""
    group: str
    """What a split keeps together by default: the recording."""
    artist: str
    """Empty where unknown."""
    checksum: str
    n_bytes: int
    seconds: float


@dataclass(frozen=True)
class Rejection:
    """One file that cannot be used; a row of rejected.csv."""

    path: str
    reason: str


def scan(
    audio_dir: Path, store: Path, *, into: Path | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Catalogue a folder of genre folders.

    Args:
        audio_dir: holds one folder of audio files per genre; a `tracks.csv` (columns path,
            track_id, artist) in it or beside it says which recording each file was cut from.
        store: the artifact folder; the catalogue gets a folder of its own in it.
        into: put the catalogue here instead.
        progress: told (files done, files in all), while they are hashed and again while checked.

    Returns:
        The result: catalogue address, counts, genres, and whether it was there already.

    Raises:
        InputError: the folder is missing, laid out otherwise, or holds no readable track.
    """
    began = time.time()
    paths = find_files(audio_dir)
    known = origins.read_table(audio_dir, paths)
    tasks = [_Task(audio_dir, path, known.get(path)) for path in paths]
    read = _in_workers(_contents, tasks, lambda _: HASHING_SECONDS, progress)
    tasks = [
        replace(task, contents=each) if isinstance(each, _Contents) else task
        for task, each in zip(tasks, read, strict=True)
    ]
    listing = [[task.path, task.contents.checksum, task.origin] for task in tasks]
    key = keys.content_key(RECIPE, listing)
    folder = into or store / "catalogues" / key
    record = records.read_json(folder / "catalogue.json") or {}
    reused = record.get("key") == key
    if not reused:
        record = {"key": key, "scanned_at": began, **_catalogue(tasks, folder, progress)}
    location = addresses.reference(audio_dir, folder)
    if record.get("audio") != location:
        record = {**record, "audio": location}
        records.write_json(folder / "catalogue.json", record)
    shown = {name: record[name] for name in ("n_tracks", "n_rejected", "genres")}
    return {"catalogue": str(folder), **shown, "reused": reused}


def _catalogue(tasks: list["_Task"], folder: Path, progress: Progress) -> dict[str, Any]:
    """Check every file and write both tables; returns the counts."""
    inspected = _in_workers(
        _inspect, tasks, lambda task: decoding.patience(task.contents.n_bytes), progress
    )
    tracks = [each for each in inspected if isinstance(each, Track)]
    rejections = [
        Rejection(task.path, each.reason)
        for task, each in zip(tasks, inspected, strict=True)
        if not isinstance(each, Track)
    ]
    if not tracks:
        raise InputError(
            f"{tasks[0].audio_dir}: none of its {len(tasks)} files can be used (the first: "
            f"{rejections[0].path}: {rejections[0].reason}); check the folder"
        )
    if rejections:
        logger.warning("%d of %d files rejected; see rejected.csv", len(rejections), len(tasks))
    tables.write_rows(folder / "rejected.csv", Rejection, rejections)
    tables.write_rows(folder / "catalogue.csv", Track, tracks)
    genres = dict(sorted(Counter(track.genre for track in tracks).items()))
    return {"n_tracks": len(tracks), "n_rejected": len(rejections), "genres": genres}


def read_catalogue(folder: Path) -> tuple[Path, list[Track], list[Rejection]]:
    """Read what `scan` wrote.

    Returns:
        The audio folder, its tracks, its rejections.

    Raises:
        InputError: the folder is no catalogue.
    """
    record = records.read_record(folder / "catalogue.json", "give the address that scan printed")
    tracks = tables.read_rows(folder / "catalogue.csv", Track)
    rejections = tables.read_rows(folder / "rejected.csv", Rejection)
    return addresses.resolve(record["audio"], folder), tracks, rejections


def read_scan_time(folder: Path) -> float:
    """Read when a catalogue's files were first looked at, in seconds since 1970."""
    record = records.read_record(folder / "catalogue.json", "give the address that scan printed")
    return float(record.get("scanned_at", 0.0))


def find_files(audio_dir: Path) -> list[str]:
    """List everything in the genre folders, sorted, relative to `audio_dir`.

    Raises:
        InputError: the folder is missing or holds no genre folders with files.
    """
    if not audio_dir.is_dir():
        raise InputError(f"{audio_dir}: no such folder; give the one that holds the genre folders")
    genres = [entry for entry in _visible(audio_dir) if addresses.is_folder(entry)]
    if [genre.name for genre in genres] == ["genres_original"]:
        raise InputError(
            f"{audio_dir}: holds genres_original, not genres; give {audio_dir / 'genres_original'}"
        )
    files = [
        entry.relative_to(audio_dir).as_posix() for genre in genres for entry in _entries(genre)
    ]
    if not files:
        raise InputError(
            f"{audio_dir}: no folder in it holds a file; lay it out as <genre>/<track>.wav"
        )
    return files


def _entries(genre: Path) -> list[Path]:
    """List a genre's folder; one that may not be read stands for itself, and will be rejected."""
    try:
        return _visible(genre)
    except OSError:
        return [genre]


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


@dataclass(frozen=True)
class _Contents:
    """What a file holds; nothing where it cannot be read, which its inspection puts into words."""

    checksum: str = ""
    n_bytes: int = 0


@dataclass(frozen=True)
class _Task:
    """A file to inspect."""

    audio_dir: Path
    path: str
    origin: origins.Origin | None
    contents: _Contents = _Contents()

    @property
    def file(self) -> Path:
        return self.audio_dir / self.path


def _in_workers(
    function: Callable[[_Task], Any],
    tasks: list[_Task],
    seconds: Callable[[_Task], float],
    progress: Progress,
) -> list[Any]:
    """Return each task's result, or why its process died, in the order of the tasks."""
    results: list[Any] = [None] * len(tasks)
    outcomes = workers.run(function, tasks, n_workers=usable_cores(), seconds=seconds)
    for done, (number, outcome) in enumerate(outcomes, start=1):
        results[number] = outcome
        progress(done, len(tasks))
    return results


def _contents(task: _Task) -> _Contents:
    try:
        _check_place(task)
        return _Contents(keys.file_checksum(task.file), task.file.stat().st_size)
    except (AudioError, OSError):
        return _Contents()


def _inspect(task: _Task) -> Track | workers.Failure:
    try:
        return _track(task)
    except AudioError as error:
        return workers.Failure(str(error))
    except OSError as error:
        return workers.Failure(f"cannot be read: {error.strerror}")


def _track(task: _Task) -> Track:
    """Describe a track.

    Raises:
        AudioError: it cannot be used.
        OSError: it cannot be read.
    """
    _check_place(task)
    file, contents = task.file, task.contents
    with decoding.open_sound(file) as sound:
        seconds = round(sound.seconds, 3)
        tags = {} if task.origin else sound.tags()
    if not contents.checksum:
        raise AudioError("could not be read to its end; scan again")
    track, artist = task.origin or origins.from_tags(tags, task.path)
    genre = task.path.split("/", 1)[0]
    return Track(
        task.path, genre, track, track, artist, contents.checksum, contents.n_bytes, seconds
    )


def _check_place(task: _Task) -> None:
    """Refuse what its name and place give away, before anything of it is read.

    Raises:
        AudioError: it is no file for us.
        OSError: it cannot be looked at.
    """
    file = task.file
    # Not Path.resolve: it raises where links lead in a circle.
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(task.audio_dir)):
        raise AudioError("a link that leads out of the audio folder; copy the file")
    if stat.S_ISDIR(file.stat().st_mode):
        os.scandir(file).close()  # says why, where it cannot be listed
        raise AudioError("a folder; audio files lie directly in a genre's folder")
    if file.suffix.lower() not in SUFFIXES:
        raise AudioError(f"its name does not end as audio files' do ({' '.join(sorted(SUFFIXES))})")
    if not file.is_file():
        raise AudioError("no plain file")
