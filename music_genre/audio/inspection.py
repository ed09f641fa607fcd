"""Look into the files of a folder, and say of each what it is or why it cannot be used."""

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
    """Looks into a file."""

    def __call__(self, path: Path, *, with_tags: bool) -> tuple[float, dict[str, str]]:
        """Return how many seconds it lasts, and its tags where they are wanted.

        Raises:
            AudioError: it cannot be used.
            OSError: it cannot be read.
        """


@dataclass(frozen=True)
class Kind:
    """What a catalogue lists."""

    name: str
    """Of its files, in the plural."""
    example: str
    """How such a file's name may end."""
    suffixes: frozenset[str]
    """How their names may end."""
    wrapper: str
    """What GTZAN's copies call the folder around the genre folders."""
    describe: Describe
    patience: Callable[[int], float]
    """Processor seconds that a file of so many bytes may take."""
    rejection: str = ""
    """How the name of a text ends that says why a file could not be made; empty: there are none."""


def _describe(path: Path, *, with_tags: bool) -> tuple[float, dict[str, str]]:
    with decoding.open_sound(path) as sound:
        return round(sound.seconds, 3), sound.tags() if with_tags else {}


AUDIO = Kind("audio files", "wav", SUFFIXES, "genres_original", _describe, decoding.patience)


@dataclass(frozen=True)
class Track:
    """One usable file; a row of catalogue.csv."""

    path: str
    """Relative to the scanned folder, with forward slashes."""
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
    """0 for a picture."""


@dataclass(frozen=True)
class Contents:
    """What a file holds; empty where it cannot be read. Its inspection says why."""

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
        """Where it is."""
        return self.folder / self.path


def read_contents(task: Task) -> Contents:
    """Hash a file."""
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
        AudioError: it cannot be used.
        OSError: it cannot be read.
    """
    _check_place(task)
    file, contents = task.file, task.contents
    seconds, tags = task.kind.describe(file, with_tags=task.origin is None)
    if not contents.checksum:
        raise AudioError("could not be read to its end; scan again")
    track, artist = task.origin or origins.from_tags(tags, task.path)
    genre = task.path.split("/", 1)[0]
    return Track(
        task.path, genre, track, track, artist, contents.checksum, contents.n_bytes, seconds
    )


def _check_place(task: Task) -> None:
    """Refuse what its name and place give away, before anything of it is read.

    Raises:
        AudioError: it is no file for us.
        OSError: it cannot be looked at.
    """
    file = task.file
    # Not Path.resolve: it raises where links lead in a circle.
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(task.folder)):
        raise AudioError("a link that leads out of the folder that is scanned; copy the file")
    if stat.S_ISDIR(file.stat().st_mode):
        os.scandir(file).close()  # says why, where it cannot be listed
        raise AudioError(f"a folder; {task.kind.name} lie directly in a genre's folder")
    if file.suffix.lower() not in {*task.kind.suffixes, task.kind.rejection}:
        ends = " ".join(sorted(task.kind.suffixes))
        raise AudioError(f"its name does not end as {task.kind.name}' do ({ends})")
    if not file.is_file():
        raise AudioError("no plain file")
