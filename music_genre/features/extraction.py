"""Draw log-mel spectrogram images: one greyscale PNG per track."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from music_genre.audio import decoding, workers
from music_genre.audio.catalogue import check_contents, check_unchanged, read_catalogue
from music_genre.audio.inspection import Track
from music_genre.config import FeatureConfig
from music_genre.errors import AudioError, InputError
from music_genre.features import pictures
from music_genre.features.spectrogram import MelSpectrogram
from music_genre.features.spool import Spool
from music_genre.progress import Progress, silent
from music_genre.resources import usable_cores
from music_genre.store import files, keys, records

logger = logging.getLogger(__name__)

RECIPE = 2
"""Increase this with every code change that gives other pixels for the same audio and settings. A
change in decoding counts; a different PNG encoding of the same pixels does not."""


class _Drawer:
    """Draws images one after another, and uses the same filters, windows and buffers for all."""

    def __init__(self, config: FeatureConfig, folder: Path | None) -> None:
        self._config = config
        self._mel = MelSpectrogram(config)
        self._spool = Spool(config, folder)

    def draw(self, audio_file: Path) -> tuple[tuple[int, int], Iterator[NDArray[np.uint8]]]:
        """Return an image's shape, and its bands of rows from the top: (n_rows, n_frames) uint8."""
        with decoding.open_sound(audio_file) as sound:
            blocks = sound.blocks(self._config.sample_rate)
            shape = self._spool.fill(self._mel.powers(blocks, sound.full_scale))
        return shape, self._spool.bands()

    def forget(self) -> None:
        """Free the disk space that a long track occupies."""
        self._spool.clear()


_drawer = lru_cache(maxsize=1)(_Drawer)


def image_of(audio_file: Path, config: FeatureConfig) -> NDArray[np.uint8]:
    """Decode a file and draw its image, (n_mels, n_frames) uint8.

    Raises:
        AudioError: the file cannot be used.
    """
    drawer = _drawer(config, None)
    try:
        _, bands = drawer.draw(audio_file)
        return np.concatenate(list(bands))
    finally:
        drawer.forget()


def image_path(track: Track, config: FeatureConfig) -> str:
    """Return the path of a track's image, relative to the images folder.

    The file name contains the content key of audio, settings and recipe. So new audio under an old
    name gets a new image, and shards do not overwrite each other's images. The text file for a
    rejection has the same name with the suffix .rejected.
    """
    key = keys.content_key(track.checksum, asdict(config), RECIPE)
    stem = Path(track.path).stem.encode("utf-8", "surrogateescape")[:200]  # limit: 255 bytes
    return f"{track.genre}/{stem.decode('utf-8', 'surrogateescape')}.{key}.png"


def rejection_path(image: Path) -> Path:
    """Return the path of the text file that `extract` writes if it cannot draw an image."""
    return image.with_suffix(pictures.REJECTED)


@dataclass(frozen=True)
class _Task:
    audio_file: Path
    n_bytes: int
    checksum: str
    """Checksum from the scan if the audio file might have changed since the scan; else empty."""
    image: Path
    folder: Path
    config: FeatureConfig


def extract(
    catalogue_dir: Path,
    store: Path,
    config: FeatureConfig,
    *,
    into: Path | None = None,
    shard: tuple[int, int] = (1, 1),
    n_workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Draw the missing images of a catalogue's tracks.

    Args:
        catalogue_dir: the catalogue that `scan` wrote.
        store: the artifact folder; images drawn with equal settings share a folder in it.
        config: the settings of the spectrogram, such as window, hop and mel bands.
        into: write the images to this folder, not to `store`.
        shard: (i, n): draw only every n-th track, beginning with the i-th.
        n_workers: number of processes; by default one per usable core.
        progress: called with (tracks done, tracks to do).

    Returns:
        The images' address, how many images were drawn, reused and rejected, and whether there was
        nothing to draw.

    Raises:
        InputError: the audio has changed since the scan, or the catalogue lists pictures.
    """
    catalogue = read_catalogue(catalogue_dir)
    if catalogue.has_pictures:
        raise InputError(
            f"{catalogue_dir}: lists pictures, so there is nothing to extract; run split instead"
        )
    audio_dir, tracks, scanned_at = catalogue.folder, catalogue.tracks, catalogue.scanned_at
    folder = into or store / "images" / keys.content_key(asdict(config), RECIPE)
    tracks = tracks[shard[0] - 1 :: shard[1]]
    images = [folder / image_path(track, config) for track in tracks]
    missing = [
        (track, image)
        for track, image in zip(tracks, images, strict=True)
        if not image.exists() and not rejection_path(image).exists()
    ]
    suspects = [check_unchanged(audio_dir, track, scanned_at) for track, _ in missing]
    record = {"key": keys.content_key(asdict(config), RECIPE), **asdict(config)}
    if records.read_json(folder / "features.json") != record:
        records.write_json(folder / "features.json", record)
    tasks = [
        _Task(audio_dir / track.path, track.n_bytes, suspect, image, folder, config)
        for (track, image), suspect in zip(missing, suspects, strict=True)
    ]
    n_extracted = _run(tasks, n_workers or usable_cores(), progress)
    n_rejected = sum(rejection_path(image).exists() for image in images)
    return {
        "images": str(folder),
        "n_extracted": n_extracted,
        "n_reused": len(tracks) - n_rejected - n_extracted,
        "n_rejected": n_rejected,
        "reused": not tasks,
    }


def read_features(images_dir: Path) -> FeatureConfig:
    """Read the settings that a folder's images were drawn with.

    Raises:
        InputError: `extract` did not write this folder.
    """
    record = records.read_record(
        images_dir / "features.json", "give the address that extract printed"
    )
    del record["key"]
    return FeatureConfig(**record)


def _run(tasks: list[_Task], n_workers: int, progress: Progress) -> int:
    """Write each task's image or rejection; return the number of images."""
    folders = {task.image.parent for task in tasks}
    for folder in folders:
        files.sweep(folder)
    if tasks:  # make the drawer before the fork, so that workers inherit it
        _drawer(tasks[0].config, tasks[0].folder)
    n_extracted = 0
    for done, (number, outcome) in enumerate(
        workers.run(
            _extract_track,
            tasks,
            n_workers=n_workers,
            seconds=lambda task: decoding.patience(task.n_bytes),
        ),
        start=1,
    ):
        reason = outcome.reason if isinstance(outcome, workers.Failure) else outcome
        if reason:
            _reject(tasks[number], reason)
        n_extracted += not reason
        progress(done, len(tasks))
    for folder in folders:
        if folder.is_dir():
            files.sync_folder(folder)
    return n_extracted


def _extract_track(task: _Task) -> str:
    """Write a track's image; return the reason for a rejection, or an empty string."""
    drawer = _drawer(task.config, task.folder)
    check_contents(task.audio_file, task.checksum)
    try:
        shape, bands = drawer.draw(task.audio_file)
        pictures.write_picture(task.image, shape, bands)
    except AudioError as error:
        return str(error)
    except OSError as error:
        error.filename = error.filename or str(task.image)
        raise
    finally:
        drawer.forget()
    return ""


def _reject(task: _Task, reason: str) -> None:
    files.write_text(rejection_path(task.image), f"{reason}\n")
    logger.warning("%s: %s", task.audio_file, reason)
