"""The spool: a track of any length becomes rows of pixels, and the spool's file is removed."""

from pathlib import Path

import numpy as np
import pytest

from music_genre.config import FeatureConfig
from music_genre.features import spectrogram, spool

CONFIG = FeatureConfig()


def powers(n_frames: int) -> np.ndarray:
    return np.random.default_rng(n_frames).lognormal(0, 4, (n_frames, 128)).astype(np.float32)


@pytest.mark.parametrize("n_frames", [1, 99, 100, 101, 200, 1_234])
@pytest.mark.parametrize("chunk", [7, 64, 450])
def test_tiles_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_frames: int, chunk: int
) -> None:
    monkeypatch.setattr(spool, "TILE_FRAMES", 100)
    track = powers(n_frames)
    decibels = spectrogram.to_decibels(track.copy())
    expected = spectrogram.to_pixels(decibels, float(decibels.max()), CONFIG).T[::-1]
    tiled = spool.Spool(CONFIG, tmp_path)
    for _ in range(2):  # the second track must not get data of the first
        chunks = (track[first : first + chunk] for first in range(0, n_frames, chunk))
        assert tiled.fill(chunks) == (128, n_frames)
        assert np.array_equal(np.concatenate(list(tiled.bands())), expected)
    tiled.clear()
    assert not list(tmp_path.iterdir())


def test_short_tracks_need_no_folder() -> None:
    short = spool.Spool(CONFIG, Path("/nowhere"))
    assert short.fill(iter([powers(500)])) == (128, 500)
    with pytest.raises(FileNotFoundError):
        short.fill(iter([powers(spool.TILE_FRAMES), powers(1)]))
