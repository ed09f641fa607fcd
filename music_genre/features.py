"""Turn waveforms into log-mel spectrogram images: one greyscale PNG per track."""

import ctypes
import logging
import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from PIL import Image

from music_genre import artifacts, audio
from music_genre.config import FeatureConfig, Progress, silent, usable_cores
from music_genre.errors import AudioError, InputError, TemporaryError

logger = logging.getLogger(__name__)

RECIPE = 1
"""Raise when the same audio and settings would give another image; decoding counts too."""

CHUNK_FRAMES = 64
"""Frames transformed at a time: their spectra (0.5 MB) stay in the cache of one core."""
BAND_FILTERS = 16
"""Mel filters multiplied at a time, by only the FFT bins that they cover: 8 times less work."""
FLOOR = 1e-10
"""Powers below it count as this, as in librosa.power_to_db."""


def mel_filters(config: FeatureConfig) -> NDArray[np.float32]:
    """Build triangular mel filters of equal area.

    Returns:
        (n_mels, 1 + n_fft // 2) float32, the lowest band first.

    Source: Slaney's Auditory Toolbox (1998), as in librosa.filters.mel.
    """
    bins = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate)
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(config.sample_rate / 2), config.n_mels + 2))
    slopes = edges[:, None] - bins
    widths = np.diff(edges)
    rising = -slopes[:-2] / widths[:-1, None]
    falling = slopes[2:] / widths[1:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return filters.astype(np.float32)


# Slaney's scale: linear below 1 kHz (15 mels), then 27 mels for each factor of 6.4.
def _hz_to_mel(hz: float) -> float:
    return hz * 0.015 if hz < 1000.0 else 15.0 + float(np.log(hz / 1000.0)) * 27.0 / np.log(6.4)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15.0, mel / 0.015, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0))


@lru_cache(maxsize=4)
def _bands(config: FeatureConfig) -> list[tuple[slice, slice, NDArray[np.float32]]]:
    """Cut the filters into (filters, bins, weights of shape (n_bins, n_filters))."""
    filters, bands = mel_filters(config), []
    for first in range(0, config.n_mels, BAND_FILTERS):
        rows = slice(first, first + BAND_FILTERS)
        covered = np.flatnonzero(filters[rows].any(axis=0))
        columns = slice(int(covered[0]), int(covered[-1]) + 1) if len(covered) else slice(0, 0)
        bands.append((rows, columns, np.ascontiguousarray(filters[rows, columns].T)))
    return bands


@lru_cache(maxsize=4)
def _window(n_fft: int) -> NDArray[np.float32]:
    """Build a periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


def log_mel_spectrogram(
    waveform: NDArray[np.float32], config: FeatureConfig
) -> NDArray[np.float32]:
    """Turn a waveform into a log-mel spectrogram.

    Args:
        waveform: (n_samples,) float32, mono, at config.sample_rate Hz.
        config: window, hop and mel bands.

    Returns:
        (n_mels, n_frames) float32 in dB relative to the maximum, floored at the dynamic range;
        n_frames = 1 + n_samples // hop_length, frame t centred on sample t * hop_length.
        Equal to librosa's melspectrogram and power_to_db(ref=max) to 0.001 dB.
    """
    power = _mel_power(waveform, config)
    decibels = 10.0 * np.log10(np.maximum(power, FLOOR, out=power), out=power)
    decibels -= decibels.max()
    return np.maximum(decibels, np.float32(-config.dynamic_range_db), out=decibels).T


def _mel_power(waveform: NDArray[np.float32], config: FeatureConfig) -> NDArray[np.float32]:
    """Return mel powers, (n_frames, n_mels) float32."""
    padded = np.pad(waveform, config.n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
    window, bands = _window(config.n_fft), _bands(config)
    mel = np.empty((len(frames), config.n_mels), np.float32)
    for first in range(0, len(frames), CHUNK_FRAMES):
        chunk = slice(first, first + CHUNK_FRAMES)
        spectrum = scipy.fft.rfft(frames[chunk] * window, overwrite_x=True)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        for rows, columns, weights in bands:
            np.matmul(power[:, columns], weights, out=mel[chunk, rows])
    return mel


def to_pixels(decibels: NDArray[np.float32], config: FeatureConfig) -> NDArray[np.uint8]:
    """Quantise a log-mel spectrogram.

    Returns:
        (n_mels, n_frames) uint8: -dynamic_range_db -> 0, 0 dB -> 255, linear, the lowest band in
        the last row.
    """
    scale = np.float32(255.0 / config.dynamic_range_db)
    levels = np.rint((decibels + np.float32(config.dynamic_range_db)) * scale)
    pixels: NDArray[np.uint8] = levels[::-1].astype(np.uint8)
    return pixels


def image_of(audio_file: Path, config: FeatureConfig) -> NDArray[np.uint8]:
    """Decode a file and draw its image, (n_mels, n_frames) uint8.

    Raises:
        AudioError: the file cannot be used.
    """
    waveform = audio.decode(audio_file, config.sample_rate)
    return to_pixels(log_mel_spectrogram(waveform, config), config)


def read_image(path: Path, n_mels: int) -> NDArray[np.uint8]:
    """Read a picture as (n_mels, n_frames) uint8.

    Colours become grey, transparency is ignored, and another height is scaled to n_mels with
    the width in proportion, so that any spectrogram picture can be trained on.

    Raises:
        InputError: it is missing or no picture.
    """
    try:
        with Image.open(path) as picture:
            grey = picture if picture.mode == "L" else picture.convert("RGB").convert("L")
            if grey.height != n_mels:
                width = max(1, round(grey.width * n_mels / grey.height))
                grey = grey.resize((width, n_mels), Image.Resampling.BILINEAR)
            return np.asarray(grey)
    except FileNotFoundError:
        raise InputError(f"{path}: is gone; run extract and split again") from None
    except (OSError, SyntaxError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a picture ({reason}); delete it and make it anew") from None


def image_path(track: audio.Track, config: FeatureConfig) -> str:
    """Name a track's image, relative to the images folder; its rejection ends in .rejected.

    The name holds the content key of audio, settings and recipe, so that new audio under an old
    name gets a new image and shards never collide.
    """
    key = artifacts.content_key(track.checksum, asdict(config), RECIPE)
    stem = Path(track.path).stem.encode("utf-8", "surrogateescape")[:200]  # names end at 255 bytes
    return f"{track.genre}/{stem.decode('utf-8', 'surrogateescape')}.{key}.png"


def rejection_path(image: Path) -> Path:
    """Name the text file that stands where an image could not be made."""
    return image.with_suffix(".rejected")


@dataclass(frozen=True)
class _Task:
    audio_file: Path
    image: Path
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
        n_workers: processes; by default as many as cores may be used.
        progress: told (tracks done, tracks to do).

    Returns:
        The result: images address, how many were made, found, rejected.

    Raises:
        InputError: the audio is not as it was when scanned.
    """
    audio_dir, tracks, _ = audio.read_catalogue(catalogue_dir)
    folder = into or store / "images" / artifacts.content_key(asdict(config), RECIPE)
    tracks = tracks[shard[0] - 1 :: shard[1]]
    images = [folder / image_path(track, config) for track in tracks]
    missing = [
        (track, image)
        for track, image in zip(tracks, images, strict=True)
        if not image.exists() and not rejection_path(image).exists()
    ]
    for track, _ in missing:
        _check_unchanged(audio_dir, track)
    record = {"key": artifacts.content_key(asdict(config), RECIPE), **asdict(config)}
    if artifacts.read_json(folder / "features.json") != record:
        artifacts.write_json(folder / "features.json", record)
    tasks = [_Task(audio_dir / track.path, image, config) for track, image in missing]
    n_extracted = 0
    for done, made in enumerate(_run(tasks, n_workers or usable_cores()), start=1):
        n_extracted += made
        progress(done, len(tasks))
    n_rejected = sum(rejection_path(image).exists() for image in images)
    return {
        "images": str(folder),
        "n_extracted": n_extracted,
        "n_reused": len(tracks) - n_rejected - n_extracted,
        "n_rejected": n_rejected,
        "reused": not tasks,
    }


def _check_unchanged(audio_dir: Path, track: audio.Track) -> None:
    """Refuse audio that is gone or has another size than the one that was scanned."""
    file = audio_dir / track.path
    try:
        n_bytes = file.stat().st_size
    except FileNotFoundError:
        raise InputError(f"{file}: is gone since the scan; put it back or scan again") from None
    if n_bytes != track.n_bytes:
        raise InputError(
            f"{file}: has {n_bytes} bytes, had {track.n_bytes} when scanned; scan again"
        )


def _run(tasks: list[_Task], n_workers: int) -> Iterator[bool]:
    """Draw the images in as many processes as are worth it; yields whether each was made."""
    n_workers = min(n_workers, len(tasks))
    if n_workers <= 1:
        yield from map(_extract_track, tasks)
        return
    # Forking shares the imports and the filters; this process runs no threads of its own.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(n_workers, context, initializer=_begin_worker)
    try:
        yield from pool.map(_extract_track, tasks, chunksize=max(1, min(8, len(tasks) // 16)))
    except BrokenProcessPool:
        raise TemporaryError(
            "a feature process was killed, perhaps for memory; run again, or with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Let a worker end by the default signals, and with its parent."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 = PR_SET_PDEATHSIG


def _extract_track(task: _Task) -> bool:
    """Leave a track's image, or the reason why there is none; returns whether it is an image."""
    try:
        pixels = image_of(task.audio_file, task.config)
    except AudioError as error:
        artifacts.write_text(rejection_path(task.image), f"{error}\n")
        logger.warning("%s: %s", task.audio_file, error)
        return False
    with artifacts.atomic_write(task.image) as file:
        # Level 1 is four times as fast as the default and hardly larger (measured).
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return True
