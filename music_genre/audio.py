"""Find and decode audio: a folder of genre folders becomes a catalogue and a list of rejections."""

import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from music_genre import artifacts, origins
from music_genre.config import Progress, silent, usable_cores
from music_genre.errors import AudioError, InputError

logger = logging.getLogger(__name__)

RECIPE = 1
"""Raise when the same folder would give another catalogue."""

SUFFIXES = {
    *(".wav", ".w64", ".caf", ".aif", ".aiff", ".au"),
    *(".flac", ".mp3", ".ogg", ".oga", ".opus"),
}
MINIMUM_SECONDS = 1.0
"""Shorter files are rejected: they hold less than half a crop."""
SILENCE = 10 / 32768
"""Peaks below ten steps of 16-bit audio (-70 dB) are dither, not music."""


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


def decode(path: Path, sample_rate: int) -> NDArray[np.float32]:
    """Read an audio file as mono.

    Args:
        path: a file in any format libsndfile reads.
        sample_rate: Hz of the result; soxr's HQ quality converts to it.

    Returns:
        (n_samples,) float32, 1.0 being full scale.

    Raises:
        AudioError: the file cannot be decoded, is shorter than it says or than one second,
            is silent or holds samples that are not finite.
    """
    with _open(path) as sound:
        _check_header(sound, path)
        try:
            samples = sound.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"cannot be decoded: {error.error_string}") from None
        if len(samples) < sound.frames:
            raise AudioError(f"ends after {len(samples)} of {sound.frames} frames; copy it anew")
        rate = sound.samplerate
    waveform = samples[:, 0]
    if samples.shape[1] > 1:
        # Adding columns is far cheaper than numpy's mean over the short axis (measured: 5x).
        waveform = sum(samples.T[1:], waveform) / np.float32(samples.shape[1])
    peak = float(np.abs(waveform).max())
    if not np.isfinite(peak):
        raise AudioError("holds samples that are not finite numbers; export it anew")
    if peak < SILENCE:
        raise AudioError(f"silent: its peak is {peak:.1g} of full scale")
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate, quality="HQ")
    return np.ascontiguousarray(waveform, dtype=np.float32)


def _open(path: Path) -> soundfile.SoundFile:
    # By descriptor: soundfile cannot pass names that are no UTF-8, and a file that may not be
    # opened stays an OSError.
    descriptor = os.open(path, os.O_RDONLY)
    if os.fstat(descriptor).st_size == 0:
        os.close(descriptor)
        raise AudioError("empty: 0 bytes")
    try:
        return soundfile.SoundFile(descriptor, closefd=True)
    except soundfile.LibsndfileError as error:
        # libsndfile closed the descriptor.
        raise AudioError(f"not audio: {error.error_string}") from None


def _check_header(sound: soundfile.SoundFile, path: Path) -> None:
    """Reject what the header alone gives away."""
    if sound.frames <= 0:
        raise AudioError("holds no audio: 0 frames")
    announced, present = _wav_data_bytes(path)
    if announced > present:
        raise AudioError(
            f"truncated: its header announces {announced} bytes of audio, {present} are there"
        )
    seconds = sound.frames / sound.samplerate
    if seconds < MINIMUM_SECONDS:
        raise AudioError(f"too short: {seconds:.2f} s, at least {MINIMUM_SECONDS} s are needed")


def _wav_data_bytes(path: Path) -> tuple[int, int]:
    """Return (announced, present) bytes of a RIFF WAV's data; (0, 0) for anything else.

    libsndfile reads a truncated WAV short without a word, so its header is read here.
    """
    with path.open("rb") as file:
        if file.read(4) != b"RIFF" or file.read(8)[4:] != b"WAVE":
            return 0, 0
        while len(chunk := file.read(8)) == 8:
            size = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"data":
                # Programs that stream a WAV cannot know its size and write this instead.
                unknown = size == 0xFFFFFFFF
                return (0 if unknown else size), path.stat().st_size - file.tell()
            file.seek(size + size % 2, os.SEEK_CUR)
    return 0, 0


def scan(
    audio_dir: Path, store: Path, *, into: Path | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Catalogue a folder of genre folders.

    Args:
        audio_dir: holds one folder of audio files per genre; a `tracks.csv` (columns path,
            track_id, artist) in it or beside it says which recording each file was cut from.
        store: the artifact folder; the catalogue gets a folder of its own in it.
        into: put the catalogue here instead.
        progress: told (files done, files in all).

    Returns:
        The result: catalogue address, counts, genres, and whether it was there already.

    Raises:
        InputError: the folder is missing, laid out otherwise, or holds no readable track.
    """
    paths = find_files(audio_dir)
    known = origins.read_table(audio_dir, paths)
    with ThreadPoolExecutor(usable_cores()) as pool:
        hashed = pool.map(lambda path: _checksum(audio_dir / path), paths)
        checksums = dict(zip(paths, hashed, strict=True))
    listing = [[path, checksum, known.get(path)] for path, checksum in checksums.items()]
    key = artifacts.content_key(RECIPE, listing)
    folder = into or store / "catalogues" / key
    record = artifacts.read_json(folder / "catalogue.json") or {}
    reused = record.get("key") == key
    if not reused:
        record = {"key": key, **_catalogue(audio_dir, checksums, known, folder, progress)}
    location = artifacts.reference(audio_dir, folder)
    if record.get("audio") != location:
        record = {**record, "audio": location}
        artifacts.write_json(folder / "catalogue.json", record)
    shown = {name: record[name] for name in ("n_tracks", "n_rejected", "genres")}
    return {"catalogue": str(folder), **shown, "reused": reused}


def _catalogue(
    audio_dir: Path,
    checksums: dict[str, str],
    known: dict[str, origins.Origin],
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Check every file and write both tables; returns the counts."""
    tracks, rejections = [], []
    for done, (path, checksum) in enumerate(checksums.items(), start=1):
        try:
            tracks.append(_inspect(audio_dir, path, checksum, known.get(path)))
        except (AudioError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            rejections.append(Rejection(path, str(reason)))
        progress(done, len(checksums))
    if not tracks:
        raise InputError(
            f"{audio_dir}: none of its {len(checksums)} files can be used (the first: "
            f"{rejections[0].path}: {rejections[0].reason}); check the folder"
        )
    if rejections:
        total = len(checksums)
        logger.warning("%d of %d files rejected; see rejected.csv", len(rejections), total)
    artifacts.write_rows(folder / "rejected.csv", Rejection, rejections)
    artifacts.write_rows(folder / "catalogue.csv", Track, tracks)
    genres = dict(sorted(Counter(track.genre for track in tracks).items()))
    return {"n_tracks": len(tracks), "n_rejected": len(rejections), "genres": genres}


def read_catalogue(folder: Path) -> tuple[Path, list[Track], list[Rejection]]:
    """Read what `scan` wrote.

    Returns:
        The audio folder, its tracks, its rejections.

    Raises:
        InputError: the folder is no catalogue.
    """
    record = artifacts.read_record(folder / "catalogue.json", "give the address that scan printed")
    tracks = artifacts.read_rows(folder / "catalogue.csv", Track)
    rejections = artifacts.read_rows(folder / "rejected.csv", Rejection)
    return artifacts.resolve(record["audio"], folder), tracks, rejections


def find_files(audio_dir: Path) -> list[str]:
    """List everything in the genre folders, sorted, relative to `audio_dir`.

    Raises:
        InputError: the folder is missing or holds no genre folders with files.
    """
    if not audio_dir.is_dir():
        raise InputError(f"{audio_dir}: no such folder; give the one that holds the genre folders")
    genres = [entry for entry in _visible(audio_dir) if entry.is_dir()]
    if [genre.name for genre in genres] == ["genres_original"]:
        raise InputError(
            f"{audio_dir}: holds genres_original, not genres; give {audio_dir / 'genres_original'}"
        )
    files = [
        entry.relative_to(audio_dir).as_posix() for genre in genres for entry in _visible(genre)
    ]
    if not files:
        raise InputError(
            f"{audio_dir}: no folder in it holds a file; lay it out as <genre>/<track>.wav"
        )
    return files


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _checksum(file: Path) -> str:
    """Hash a file; empty where it cannot be read, which its inspection will put into words."""
    try:
        return artifacts.file_checksum(file) if file.is_file() else ""
    except OSError:
        return ""


def _inspect(audio_dir: Path, path: str, checksum: str, origin: origins.Origin | None) -> Track:
    file = audio_dir / path
    if not file.resolve().is_relative_to(audio_dir.resolve()):
        raise AudioError("a link that leads out of the audio folder; copy the file")
    if not file.is_file():
        raise AudioError("a folder or no plain file; audio files lie directly in a genre's folder")
    if file.suffix.lower() not in SUFFIXES:
        raise AudioError(f"its name does not end as audio files' do ({' '.join(sorted(SUFFIXES))})")
    with _open(file) as sound:
        _check_header(sound, file)
        seconds = round(sound.frames / sound.samplerate, 3)
        tags = {} if origin else sound.copy_metadata()
    track, artist = origin or origins.from_tags(tags, path)
    genre = path.split("/", 1)[0]
    return Track(path, genre, track, track, artist, checksum, file.stat().st_size, seconds)
