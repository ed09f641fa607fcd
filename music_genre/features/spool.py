"""Store the decibels of one track: a short track in memory, a long one in an unnamed file."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from music_genre.config import FeatureConfig
from music_genre.features import spectrogram

TILE_FRAMES = 1 << 14
"""Frames of a full buffer, called a tile: 6 minutes, 8 MB. Longer tracks need a file of tiles."""


class Spool:
    """Takes mel powers frame by frame and gives them back as rows of grey levels.

    Grey levels are relative to the track's maximum, so they are computed after the last frame.
    """

    def __init__(self, config: FeatureConfig, folder: Path | None = None) -> None:
        """Create the buffer; long tracks are written to a file in `folder`."""
        self._config = config
        self._folder = folder
        self._tile = np.empty((TILE_FRAMES, config.n_mels), np.float32)
        self._file: IO[bytes] | None = None
        self._held = self._n_tiles = 0
        self._maximum = -np.inf

    def fill(self, powers: Iterator[NDArray[np.float32]]) -> tuple[int, int]:
        """Take the mel powers of a new track, in chunks of (n_frames, n_mels) float32.

        Returns:
            (n_mels, n_frames): the shape of the track's image.

        Raises:
            OSError: the disk is full.
        """
        self.clear()
        for chunk in powers:
            first = 0
            while first < len(chunk):
                if self._held == TILE_FRAMES:
                    self._put_away()
                part = chunk[first : first + TILE_FRAMES - self._held]
                self._tile[self._held : self._held + len(part)] = part
                self._held += len(part)
                first += len(part)
        self._finish_tile()
        return self._config.n_mels, self._n_tiles * TILE_FRAMES + self._held

    def clear(self) -> None:
        """Forget the track and close its file."""
        if self._file:
            self._file.close()
        self._file = None
        self._held = self._n_tiles = 0
        self._maximum = -np.inf

    def _finish_tile(self) -> None:
        decibels = spectrogram.to_decibels(self._tile[: self._held])
        self._maximum = max(self._maximum, float(decibels.max()))

    def _put_away(self) -> None:
        """Write the full tile mel band by mel band, because an image is read back row by row."""
        self._finish_tile()
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        self._file.write(self._tile.T.tobytes())
        self._file.flush()
        self._n_tiles += 1
        self._held = 0

    def bands(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the image from top to bottom, (n_rows, n_frames) uint8; the lowest band is last."""
        last = self._to_pixels(self._tile[: self._held]).T[::-1]
        if self._file is None:
            yield last
            return
        n_mels, row_bytes = self._config.n_mels, 4 * TILE_FRAMES
        for mel in reversed(range(n_mels)):
            tiles = []
            for tile in range(self._n_tiles):
                self._file.seek((tile * n_mels + mel) * row_bytes)
                row = self._file.read(row_bytes)
                tiles.append(self._to_pixels(np.frombuffer(row, np.float32)))
            yield np.concatenate([*tiles, last[n_mels - 1 - mel]])[None]

    def _to_pixels(self, decibels: NDArray[np.float32]) -> NDArray[np.uint8]:
        return spectrogram.to_pixels(decibels, self._maximum, self._config)
