"""Turn a stream of samples into mel powers, then into decibels and grey levels."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from music_genre.config import FeatureConfig

CHUNK_FRAMES = 64
"""Number of frames in one FFT call. Their spectra (0.5 MB) fit into the cache of a core."""
BUFFER_SAMPLES = 1 << 16
"""Maximum number of samples copied into the buffer at a time: 3 s of audio."""
BAND_SIZE = 2500
"""Maximum size of the matrix of one band of filters: filters times FFT bins. Seven such matrices
take 0.8 ms a track and need an eighth of the multiplications that one matrix of all filters needs.
BLAS starts no threads for matrices of this size; its threads would slow down other workers."""
FLOOR = 1e-10
"""Minimum power; a smaller power is replaced by this value, as in librosa.power_to_db."""
DECIBELS = np.float32(10.0 / np.log(10.0))
"""The natural logarithm of a power, times this factor, is the power in decibels."""


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


# Slaney's mel scale: linear below 1 kHz (15 mels); above, 27 mels for each factor of 6.4 in Hz.
def _hz_to_mel(hz: float) -> float:
    return hz * 0.015 if hz < 1000.0 else 15.0 + float(np.log(hz / 1000.0)) * 27.0 / np.log(6.4)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15.0, mel / 0.015, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0))


Band = tuple[slice, slice, NDArray[np.float32]]
"""Range of filters, range of the FFT bins that they cover, and weights (n_bins, n_filters)."""


def _bands(config: FeatureConfig) -> list[Band]:
    """Group neighbouring filters into bands, each as large as BAND_SIZE allows."""
    filters, bands = mel_filters(config), []
    first = 0
    while first < config.n_mels:
        last = first + 1
        band = _band(filters, first, last)
        while last < config.n_mels:
            wider = _band(filters, first, last + 1)
            if wider[2].size > BAND_SIZE:
                break
            band, last = wider, last + 1
        bands.append(band)
        first = last
    return bands


def _band(filters: NDArray[np.float32], first: int, last: int) -> Band:
    covered = np.flatnonzero(filters[first:last].any(axis=0))
    bins = slice(int(covered[0]), int(covered[-1]) + 1) if len(covered) else slice(0, 0)
    return slice(first, last), bins, np.ascontiguousarray(filters[first:last, bins].T)


def _window(n_fft: int) -> NDArray[np.float64]:
    """Build a periodic Hann window."""
    window: NDArray[np.float64] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    return window


class MelSpectrogram:
    """Computes mel powers; its filters, windows and buffers are reused from track to track."""

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        self._bands = _bands(config)
        self._windows: dict[float, NDArray[np.float32]] = {}
        self._samples = np.empty(BUFFER_SAMPLES + config.n_fft, np.float32)
        self._frames = sliding_window_view(self._samples, config.n_fft)[:: config.hop_length]
        self._windowed = np.empty((CHUNK_FRAMES, config.n_fft), np.float32)
        self._power = np.empty((CHUNK_FRAMES, config.n_fft // 2 + 1), np.float32)
        self._mel = np.empty((CHUNK_FRAMES, config.n_mels), np.float32)

    def powers(
        self, blocks: Iterable[NDArray[Any]], full_scale: float = 1.0
    ) -> Iterator[NDArray[np.float32]]:
        """Turn samples into mel powers.

        Args:
            blocks: (n_samples,) each, float32 or int16, mono, at config.sample_rate Hz.
            full_scale: the sample value that counts as 1.

        Yields:
            (n_frames, n_mels) float32, at most CHUNK_FRAMES frames; the next chunk overwrites the
            array. All chunks together have 1 + n_samples // hop_length frames. Frame t is centred
            on sample t * hop_length, with zeros before the first sample and after the last.
        """
        window = self._window(full_scale)
        margin, hop = self.config.n_fft // 2, self.config.hop_length
        held = margin  # number of samples in the buffer
        self._samples[:held] = 0
        for part in _parts(blocks, np.zeros(margin, np.float32)):
            # The assignment also converts int16 to float32.
            self._samples[held : held + len(part)] = part
            held += len(part)
            n_frames = max(0, (held - self.config.n_fft) // hop + 1)
            for first in range(0, n_frames, CHUNK_FRAMES):
                yield self._chunk(slice(first, min(first + CHUNK_FRAMES, n_frames)), window)
            used = n_frames * hop
            self._samples[: held - used] = self._samples[used:held]
            held -= used

    def _window(self, full_scale: float) -> NDArray[np.float32]:
        # Scaling the window is cheaper than scaling each sample. Multiplying by a window that is
        # repeated for each frame takes 0.3 ms a track; broadcasting one window takes 0.4 ms.
        if full_scale not in self._windows:
            scaled = (_window(self.config.n_fft) / full_scale).astype(np.float32)
            self._windows[full_scale] = np.tile(scaled, (CHUNK_FRAMES, 1))
        return self._windows[full_scale]

    def _chunk(self, chunk: slice, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mel powers of the frames `chunk` in the buffer, (n_frames, n_mels) float32."""
        n_frames = chunk.stop - chunk.start
        windowed = np.multiply(
            self._frames[chunk], window[:n_frames], out=self._windowed[:n_frames]
        )
        spectrum = scipy.fft.rfft(windowed)
        # np.abs takes 0.4 ms a track with AVX-512. Adding the squares of the real and imaginary
        # parts instead would take 0.55 ms.
        power = np.abs(spectrum, out=self._power[:n_frames])
        power *= power
        mel = self._mel[:n_frames]
        for rows, columns, weights in self._bands:
            np.matmul(power[:, columns], weights, out=mel[:, rows])
        return mel


def _parts(blocks: Iterable[NDArray[Any]], end: NDArray[np.float32]) -> Iterator[NDArray[Any]]:
    """Split the blocks, then the zeros in `end`, into parts of at most BUFFER_SAMPLES samples."""
    for block in chain(blocks, [end]):
        for first in range(0, len(block), BUFFER_SAMPLES):
            yield block[first : first + BUFFER_SAMPLES]


def to_decibels(powers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn powers of any shape into decibels, in place; formula as in librosa.power_to_db."""
    np.maximum(powers, FLOOR, out=powers)
    # np.log10 would take 1.2 ms a track without AVX-512; np.log takes 0.15 ms (measured).
    np.log(powers, out=powers)
    return np.multiply(powers, DECIBELS, out=powers)


def to_pixels(
    decibels: NDArray[np.float32], maximum: float, config: FeatureConfig
) -> NDArray[np.uint8]:
    """Quantise decibels.

    Args:
        decibels: float32 of any shape.
        maximum: the highest value of the track, in decibels.

    Returns:
        uint8 of the same shape, linear in decibels: `maximum` becomes 255; values of at most
        `maximum - config.dynamic_range_db` become 0.
    """
    # Do not reorder these operations: in another order they would round differently.
    levels = decibels - np.float32(maximum)
    np.maximum(levels, np.float32(-config.dynamic_range_db), out=levels)
    levels += np.float32(config.dynamic_range_db)
    levels *= np.float32(255.0 / config.dynamic_range_db)
    pixels: NDArray[np.uint8] = np.rint(levels, out=levels).astype(np.uint8)
    return pixels
