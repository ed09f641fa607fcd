"""Draw log-mel spectrogram images: one greyscale PNG per track."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from music_genre.audio import decoding, workers
from music_genre.audio.catalogue import read_catalogue
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

CLOCKS_DIFFER_SECONDS = 5.0
"""Largest expected difference between the clocks of the scanning host and the storage."""
RECIPE = 2
"""Increase this when the same audio and settings would give different pixels, including by a
change in decoding. A different PNG encoding of the same pixels does not count."""


class _Drawer:
    """Shared between tracks: filters, windows and buffers."""

    def __init__(self, config: FeatureConfig, folder: Path | None) -> None:
        self._config = config
        self._mel = MelSpectrogram(config)
        self._spool = Spool(config, folder)

    def draw(self, audio_file: Path) -> tuple[tuple[int, int], Iterator[NDArray[np.uint8]]]:
        """Return an image's shape and its bands from the top, each (n_rows, n_frames) uint8."""
        with decoding.open_sound(audio_file) as sound:
            blocks = sound.blocks(self._config.sample_rate)
            shape = self._spool.fill(self._mel.powers(blocks, sound.full_scale))
        return shape, self._spool.bands()

    def forget(self) -> None:
        """Free the disk space that a long track took."""
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
    """Name a track's image, relative to the images folder; its rejection ends in .rejected.

    The name holds the content key of audio, settings and recipe, so that new audio under an old
    name gets a new image and shards never collide.
    """
    key = keys.content_key(track.checksum, asdict(config), RECIPE)
    stem = Path(track.path).stem.encode("utf-8", "surrogateescape")[:200]  # limit: 255 bytes
    return f"{track.genre}/{stem.decode('utf-8', 'surrogateescape')}.{key}.png"


def rejection_path(image: Path) -> Path:
    """Name the text file that is written if an image cannot be made."""
    return image.with_suffix(pictures.REJECTED)


@dataclass(frozen=True)
class _Task:
    audio_file: Path
    n_bytes: int
    checksum: str
    """Of the audio, if it may have changed since the scan; else empty."""
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
    """Draw the images that a catalogue's tracks do not have yet.

    Args:
        catalogue_dir: what `scan` made.
        store: the artifact folder; images of equal settings share a folder in it.
        config: window, hop and mel bands.
        into: put the images here instead.
        shard: (i, n): only every n-th track, beginning with the i-th.
        n_workers: processes; by default one per usable core.
        progress: called with (tracks done, tracks to do).

    Returns:
        The result: images address, how many were made, found, rejected.

    Raises:
        InputError: the audio has changed since the scan, or the catalogue lists pictures.
    """
    catalogue = read_catalogue(catalogue_dir)
    if catalogue.has_pictures:
        raise InputError(f"{catalogue_dir}: lists pictures, which are not extracted; split them")
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


def drawn_from(images_dir: Path) -> Path | None:
    """Find the catalogue that a folder of images was drawn from.

    Returns:
        Its folder: the catalogue beside the images that lists all of them; if several do, the one
        that was scanned last. None if `extract` did not draw the pictures, or if no catalogue
        beside them lists any.

    Raises:
        InputError: the images come from several catalogues.
    """
    if (images_dir / "catalogue.json").exists():  # written by create-image-features-from-audio
        return images_dir
    if not (images_dir / "features.json").exists():
        return None
    named = _catalogues_beside(images_dir)
    whole = [catalogue for catalogue, n_left_out in named if not n_left_out]
    if whole:
        logger.info("%s: drawn by extract from what %s lists", images_dir, whole[-1])
        return whole[-1]
    if named:
        raise InputError(
            f"{images_dir}: drawn by extract, and none of {len(named)} catalogues beside it lists "
            "all its images; choose one by split with --catalogue and --images"
        )
    logger.warning(
        "%s: drawn by extract, but their catalogue is not beside them: which of them are of one "
        "recording is not known; run split with --catalogue and --images instead",
        images_dir,
    )
    return None


def _catalogues_beside(images_dir: Path) -> list[tuple[Path, int]]:
    """List the catalogues that list some of a folder's images, and how many each leaves out.

    They are in the order in which they were scanned.
    """
    settings = read_features(images_dir)
    there = {path.relative_to(images_dir).as_posix() for path in images_dir.glob("*/*.png")}
    found = []
    for record in (images_dir.parent.parent / "catalogues").glob("*/catalogue.json"):
        with contextlib.suppress(InputError):  # a damaged one is skipped
            catalogue = read_catalogue(record.parent)
            named = {image_path(track, settings) for track in catalogue.tracks}
            if not catalogue.has_pictures and named & there:
                found.append((catalogue.scanned_at, record.parent, len(there - named)))
    return [(folder, n_left_out) for _, folder, n_left_out in sorted(found)]


def read_features(images_dir: Path) -> FeatureConfig:
    """Read the settings that a folder's images were drawn with.

    Raises:
        InputError: `extract` did not draw them.
    """
    record = records.read_record(
        images_dir / "features.json", "give the address that extract printed"
    )
    del record["key"]
    return FeatureConfig(**record)


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
        The checksum that it must still have, if it was touched since; else an empty string.

    Raises:
        InputError: it is gone, or has another size.
    """
    file = folder / track.path
    try:
        found = file.stat()
    except FileNotFoundError:
        raise InputError(f"{file}: is gone since the scan; put it back or scan again") from None
    if found.st_size != track.n_bytes:
        raise InputError(
            f"{file}: has {found.st_size} bytes, had {track.n_bytes} when scanned; scan again"
        )
    # ctime: the kernel sets it at each change, and copying cannot set it back.
    return track.checksum if found.st_ctime > scanned_at - CLOCKS_DIFFER_SECONDS else ""


def _run(tasks: list[_Task], n_workers: int, progress: Progress) -> int:
    """Write each task's image or rejection; return the number of images."""
    folders = {task.image.parent for task in tasks}
    for folder in folders:
        files.sweep(folder)
    if tasks:  # made before the fork, so that the workers share it
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
    """Write a track's image; return why it was rejected, or an empty string."""
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
