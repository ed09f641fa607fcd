"""Mel powers, decibels and grey levels equal librosa's, whatever the size of the blocks."""

from dataclasses import replace

import librosa
import numpy as np
import pytest
from conftest import SAMPLE_RATE, tone
from reference import grey_levels, librosa_log_mel, log_mel_spectrogram

from music_genre.config import FeatureConfig
from music_genre.features import spectrogram

CONFIG = FeatureConfig()


def chords(seconds: float = 8.0) -> np.ndarray:
    """Decaying chords over faint noise, with the dynamic range and the onsets of music."""
    random = np.random.default_rng(7)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = random.normal(0, 1e-3, len(time))
    for onset in np.arange(0, seconds, 0.5):
        since = np.maximum(time - onset, 0)
        for pitch in random.choice([55, 110, 220, 277, 330, 440, 554, 880, 1760], 4):
            wave += (time >= onset) * 0.1 * np.exp(-3 * since) * np.sin(2 * np.pi * pitch * since)
    return wave.astype(np.float32)


WAVES = {
    "chords": chords(),
    "noise": np.random.default_rng(1).normal(0, 0.1, 5 * SAMPLE_RATE + 77).astype(np.float32),
    "faint": chords() * np.float32(1e-3),
    "click": np.eye(1, SAMPLE_RATE, 999, dtype=np.float32)[0],
    "one second": tone("lead", 3, 1.0),
}


@pytest.mark.parametrize("name", WAVES)
def test_log_mel_equals_librosa(name: str) -> None:
    ours = log_mel_spectrogram(WAVES[name], CONFIG)
    theirs = librosa_log_mel(WAVES[name], CONFIG)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape == (128, 1 + len(WAVES[name]) // 512)
    assert np.abs(ours - theirs).max() < 1e-3
    pixels = spectrogram.to_pixels(ours, 0.0, CONFIG)[::-1]
    expected = grey_levels(theirs, CONFIG)
    assert np.abs(pixels - expected).max() <= 1
    assert (pixels == expected).mean() >= 0.9999


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, n_mels=64),
        replace(CONFIG, n_mels=40, n_fft=1024, hop_length=300, sample_rate=16_000),
    ],
)
def test_other_settings_equal_librosa_too(config: FeatureConfig) -> None:
    ours = log_mel_spectrogram(WAVES["chords"], config)
    assert np.abs(ours - librosa_log_mel(WAVES["chords"], config)).max() < 1e-3


def test_filters_equal_librosa() -> None:
    theirs = librosa.filters.mel(sr=22_050, n_fft=2048, n_mels=128)
    np.testing.assert_allclose(spectrogram.mel_filters(CONFIG), theirs, rtol=1e-5, atol=1e-9)


def test_pixels_follow_the_law() -> None:
    decibels = np.linspace(-90, 0, 128, dtype=np.float32)
    pixels = spectrogram.to_pixels(decibels + np.float32(7), 7.0, CONFIG)
    assert pixels.dtype == np.uint8
    assert not pixels[decibels <= -80].any()
    assert pixels[-1] == 255
    assert set(np.diff(pixels[decibels > -80].astype(int))) == {2, 3}


def powers(blocks: list[np.ndarray], full_scale: float = 1.0) -> np.ndarray:
    stream = spectrogram.MelSpectrogram(CONFIG).powers(blocks, full_scale)
    return np.concatenate([chunk.copy() for chunk in stream])


@pytest.mark.parametrize("size", [1, 511, 4_096, 70_001, 200_000])
def test_blocks_of_any_size_give_the_same_frames(size: int) -> None:
    wave = WAVES["noise"] if size > 1 else WAVES["click"]
    blocks = [wave[first : first + size] for first in range(0, len(wave), size)]
    np.testing.assert_allclose(powers(blocks), powers([wave]), rtol=1e-5)


def test_integers_count_as_fractions_of_full_scale() -> None:
    integers = np.rint(WAVES["chords"] * 32_768).astype(np.int16)
    floats = integers.astype(np.float32) / 32_768
    np.testing.assert_allclose(powers([integers], 32_768.0), powers([floats]), rtol=1e-5)


def test_one_object_draws_any_number_of_tracks() -> None:
    mel = spectrogram.MelSpectrogram(CONFIG)
    drawn = [
        np.concatenate([chunk.copy() for chunk in mel.powers([WAVES[name]])])
        for name in ("noise", "click", "noise")
    ]
    assert np.array_equal(drawn[0], drawn[2])
