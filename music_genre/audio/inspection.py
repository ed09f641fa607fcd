"""Inspect the files of a folder: describe each file, or say why it cannot be used."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from music_genre.audio import decoding, origins, workers
from music_genre.errors import AudioError
from music_genre.store import keys

SUFFIXES = frozenset(
    {
        *(".wav", ".w64", ".caf", ".aif", ".aiff", ".au"),
        *(".flac", ".mp3", ".ogg", ".oga", ".opus"),
    }
)


class Describe(Protocol):
    """A function that inspects a file."""

    def __call__(self, path: Path, *, with_tags: bool) -> tuple[float, dict[str, str]]:
        """Return a file's length in seconds, and its tags if requested.

        Raises:
            AudioError: the file cannot be used.
            OSError: the file cannot be read.
        """


@dataclass(frozen=True)
class Kind:
    """A kind of file that a catalogue can list: audio files or pictures."""

    name: str
    """The name of files of this kind in messages, in the plural."""
    example: str
    """A suffix without its dot; messages show it as an example."""
    suffixes: frozenset[str]
    """The accepted suffixes, with their dots."""
    wrapper: str
    """Name of the folder that holds the genre folders in copies of the GTZAN data set."""
    describe: Describe
    patience: Callable[[int], float]
    """Returns the limit in CPU seconds for inspecting a file of a given number of bytes."""
    rejection: str = ""
    """Suffix of the text files that `extract` writes for images that it cannot draw; empty if this
    kind has no such files."""


def _describe(path: Path, *, with_tags: bool) -> tuple[float, dict[str, str]]:
    with decoding.open_sound(path) as sound:
        return round(sound.seconds, 3), sound.tags() if with_tags else {}


AUDIO = Kind("audio files", "wav", SUFFIXES, "genres_original", _describe, decoding.patience)


@dataclass(frozen=True)
class Track:
    """One usable file; a row of catalogue.csv."""

    path: str
    """Path relative to the scanned folder, with forward slashes."""
    genre: str
    track: str
    """The recording that the file was cut from."""
    group: str
    """The default group of the file: the recording. A split keeps a group's files on one side."""
    artist: str
    """The recording's artist; empty if unknown."""
    checksum: str
    n_bytes: int
    seconds: float
    """Length of the audio; 0 for a picture."""


@dataclass(frozen=True)
class Contents:
    """A file's checksum and size.

    Both keep their defaults if the file cannot be read; `inspect` then gives the reason.
    """

    checksum: str = ""
    n_bytes: int = 0


@dataclass(frozen=True)
class Task:
    """A file to inspect."""

    kind: Kind
    folder: Path
    path: str
    origin: origins.Origin | None
    contents: Contents = Contents()

    @property
    def file(self) -> Path:
        """The path of the file."""
        return self.folder / self.path


def read_contents(task: Task) -> Contents:
    """Return a file's checksum and size, or empty `Contents` if the file cannot be used."""
    try:
        _check_place(task)
        return Contents(keys.file_checksum(task.file), task.file.stat().st_size)
    except (AudioError, OSError):
        return Contents()


def inspect(task: Task) -> Track | workers.Failure:
    """Describe a file, or say why it cannot be used."""
    try:
        return _track(task)
    except AudioError as error:
        return workers.Failure(str(error))
    except OSError as error:
        return workers.Failure(f"cannot be read: {error.strerror}")


def _track(task: Task) -> Track:
    """Describe a track.

    Raises:
        AudioError: the file cannot be used.
        OSError: the file cannot be read.
    """
    _check_place(task)
    file, contents = task.file, task.contents
    seconds, tags = task.kind.describe(file, with_tags=task.origin is None)
    if not contents.checksum:
        raise AudioError("could not be read completely; scan again")
    track, artist = task.origin or origins.from_tags(tags, task.path)
    genre = task.path.split("/", 1)[0]
    return Track(
        task.path, genre, track, track, artist, contents.checksum, contents.n_bytes, seconds
    )


def _check_place(task: Task) -> None:
    """Reject a file whose name, place or type is wrong, before the file is read.

    Raises:
        AudioError: the file cannot be used.
        OSError: the file or folder cannot be accessed.
    """
    file = task.file
    # os.path.realpath, because Path.resolve raises if links form a loop.
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(task.folder)):
        raise AudioError("a link that points outside the scanned folder; replace it with a copy")
    if stat.S_ISDIR(file.stat().st_mode):
        os.scandir(file).close()  # raises OSError if the folder cannot be listed
        raise AudioError(f"a folder; put {task.kind.name} directly into the genre folder")
    if file.suffix.lower() not in {*task.kind.suffixes, task.kind.rejection}:
        ends = " ".join(sorted(task.kind.suffixes))
        raise AudioError(f"its suffix is not accepted for {task.kind.name} (accepted: {ends})")
    if not file.is_file():
        raise AudioError("not a regular file")
