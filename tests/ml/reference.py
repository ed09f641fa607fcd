"""The expected images: librosa's log-mel, turned into grey levels by the project's formula.

Two functions join the blocks of our own code, so that tests can compare whole waveforms and
spectrograms.
"""

import warnings
from pathlib import Path

import librosa
import numpy as np

from music_genre.audio.decoding import open_sound
from music_genre.config import FeatureConfig
from music_genre.features.spectrogram import MelSpectrogram, to_decibels


def decode(path: Path, sample_rate: int) -> np.ndarray:
    """All blocks of a file, joined: (n_samples,) float32, mono; full scale is 1.0."""
    with open_sound(path) as sound:
        waveform = np.concatenate([block.copy() for block in sound.blocks(sample_rate)])
        return waveform.astype(np.float32) / np.float32(sound.full_scale)


def log_mel_spectrogram(waveform: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """(n_mels, n_frames) float32 in dB relative to the maximum, like librosa_log_mel."""
    powers = MelSpectrogram(config).powers([waveform])
    decibels = to_decibels(np.concatenate([chunk.copy() for chunk in powers]))
    decibels -= decibels.max()
    return np.maximum(decibels, np.float32(-config.dynamic_range_db), out=decibels).T


def librosa_load(path: Path, sample_rate: int) -> np.ndarray:
    """(n_samples,) float32, mono; warnings of librosa's own imports are ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return librosa.load(path, sr=sample_rate)[0]


def librosa_log_mel(waveform: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """(n_mels, n_frames) in dB relative to the maximum."""
    power = librosa.feature.melspectrogram(
        y=waveform,
        sr=config.sample_rate,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        n_mels=config.n_mels,
    )
    return librosa.power_to_db(power, ref=np.max, top_db=config.dynamic_range_db)


def grey_levels(decibels: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """(n_mels, n_frames) integers from 0 to 255, the lowest band in the last row."""
    top = config.dynamic_range_db
    return np.rint((decibels[::-1] + top) * 255 / top).astype(int)
