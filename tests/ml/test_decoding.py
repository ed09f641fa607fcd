"""Decoding: any format becomes mono at our rate, block by block; unusable files are refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, tone
from reference import decode, librosa_load

from music_genre.audio import decoding, headers
from music_genre.errors import AudioError


def write_truncated(path: Path) -> None:
    soundfile.write(path, tone("bass", 1, 10), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[:100_001])


def write_nan(path: Path) -> None:
    wave = tone("bass", 1)
    wave[99] = np.nan
    soundfile.write(path, wave, SAMPLE_RATE, subtype="FLOAT")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_nan, "not finite"),
        (lambda p: soundfile.write(p, np.zeros(SAMPLE_RATE * 2), SAMPLE_RATE), "silent"),
        (write_truncated, "truncated"),
    ],
)
def test_decode_refuses_unusable_samples(tmp_path: Path, write, reason: str) -> None:
    write(tmp_path / "x.wav")
    with pytest.raises(AudioError, match=reason):
        decode(tmp_path / "x.wav", SAMPLE_RATE)


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate", "channels", "tolerance"),
    [
        (".wav", "PCM_U8", 22_050, 1, 0.01),
        (".wav", "PCM_16", 44_100, 2, 0.005),
        (".wav", "FLOAT", 8_000, 1, 0.005),
        (".flac", "PCM_24", 48_000, 3, 0.005),
        (".ogg", "VORBIS", 48_000, 2, 0.05),
        (".mp3", "MPEG_LAYER_III", 44_100, 1, 0.05),
    ],
)
def test_decode_mixes_and_resamples_any_format(
    tmp_path: Path, suffix: str, subtype: str, rate: int, channels: int, tolerance: float
) -> None:
    time = np.arange(2 * rate) / rate
    wave = 0.5 * np.sin(2 * np.pi * 440 * time)
    gains = np.linspace(1.5, 0.5, channels) if channels > 1 else np.ones(1)
    path = tmp_path / f"x{suffix}"
    soundfile.write(path, wave[:, None] * gains, rate, subtype=subtype)
    decoded = decode(path, SAMPLE_RATE)
    middle = slice(SAMPLE_RATE // 2, SAMPLE_RATE)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE)
    assert decoded.dtype == np.float32
    assert abs(len(decoded) - 2 * SAMPLE_RATE) < 0.1 * SAMPLE_RATE
    level = np.sqrt(np.mean(decoded[middle] ** 2) / np.mean(expected[middle] ** 2))
    assert level == pytest.approx(1, abs=tolerance)
    assert np.argmax(np.abs(np.fft.rfft(decoded[:SAMPLE_RATE]))) == 440


def test_a_wav_of_unknown_length_is_read(tmp_path: Path) -> None:
    path = tmp_path / "stream.wav"
    soundfile.write(path, tone("bass", 1), SAMPLE_RATE)
    data = bytearray(path.read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(decode(path, SAMPLE_RATE)) == 2 * SAMPLE_RATE


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("block_samples", [1_000, 1 << 16])
def test_blocks_are_what_librosa_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int, block_samples: int
) -> None:
    monkeypatch.setattr(decoding, "BLOCK_SAMPLES", block_samples)
    wave = np.random.default_rng(rate).normal(0, 0.1, (2 * rate + 77, 2))
    soundfile.write(tmp_path / "x.wav", wave, rate)
    theirs = librosa_load(tmp_path / "x.wav", SAMPLE_RATE)
    ours = decode(tmp_path / "x.wav", SAMPLE_RATE)
    assert len(ours) == len(theirs) == math.ceil((2 * rate + 77) * SAMPLE_RATE / rate)
    assert np.abs(ours - theirs).max() < 1e-6


def test_many_channels_make_short_blocks(tmp_path: Path) -> None:
    wave = np.random.default_rng(1).normal(0, 0.1, (SAMPLE_RATE, 64))
    soundfile.write(tmp_path / "x.wav", wave, SAMPLE_RATE)
    with decoding.open_sound(tmp_path / "x.wav") as sound:
        sizes = [len(block) for block in sound.blocks(SAMPLE_RATE)]
    assert max(sizes) == decoding.BLOCK_SAMPLES // 64
    assert sum(sizes) == SAMPLE_RATE


@pytest.mark.parametrize(
    ("subtype", "dtype", "full_scale"),
    [
        ("PCM_U8", np.int16, 32_768.0),
        ("PCM_16", np.int16, 32_768.0),
        ("PCM_24", np.float32, 1.0),
        ("FLOAT", np.float32, 1.0),
    ],
)
def test_small_integers_stay_integers(
    tmp_path: Path, subtype: str, dtype: type, full_scale: float
) -> None:
    soundfile.write(tmp_path / "x.wav", tone("bass", 1), SAMPLE_RATE, subtype=subtype)
    expected, _ = soundfile.read(tmp_path / "x.wav", dtype="float32")
    with decoding.open_sound(tmp_path / "x.wav") as sound:
        (block,) = sound.blocks(SAMPLE_RATE)
        assert sound.full_scale == full_scale
        assert block.dtype == dtype
        assert np.array_equal((block / full_scale).astype(np.float32), expected)


@pytest.mark.parametrize(
    ("rate", "channels", "seconds", "reason"),
    [
        (500, 1, 2, "announces 500 samples a second"),
        (2_000_000, 1, 2, "announces 2000000 samples a second"),
        (8_000, 65, 2, "announces 65 channels"),
        (8_000, 1, 0.5, "too short: 0.50 s"),
    ],
)
def test_headers_that_cannot_be_are_refused(
    tmp_path: Path, rate: int, channels: int, seconds: float, reason: str
) -> None:
    soundfile.write(tmp_path / "x.wav", np.ones((int(rate * seconds), channels)), rate)
    with pytest.raises(AudioError, match=reason), decoding.open_sound(tmp_path / "x.wav"):
        pass


def test_samples_that_leave_float32_when_squared_are_refused(tmp_path: Path) -> None:
    wave = np.full((SAMPLE_RATE, 2), 3e38, np.float32)  # as float32, the channels' sum is infinite
    wave[:, 1] *= np.linspace(-1, 1, SAMPLE_RATE)
    soundfile.write(tmp_path / "x.wav", wave, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="finite"):
        decode(tmp_path / "x.wav", SAMPLE_RATE)
    soundfile.write(tmp_path / "x.wav", wave[:, 0] / 1e10, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"3e\+28 times full scale"):
        decode(tmp_path / "x.wav", SAMPLE_RATE)


def test_an_mp3_whose_length_is_a_guess_is_read_to_its_end(tmp_path: Path) -> None:
    """The first frame states the length. If that frame is lost, libsndfile guesses the length."""
    path = tmp_path / "x.mp3"
    wave = np.concatenate([tone("bass", 1, 8.0) * 0.01, tone("noise", 1, 8.0)])
    soundfile.write(path, wave, SAMPLE_RATE)
    assert headers.mp3_says_its_length(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match="of 352800 frames"):
        decode(path, SAMPLE_RATE)
    second = data.index(data[:2], data.index(b"Xing"))
    for cut in (
        data[second:],
        b"ID3\4\0\0\0\0\2\0" + bytes(256) + data[second:],
    ):
        path.write_bytes(cut)
        assert not headers.mp3_says_its_length(path)
        expected = librosa_load(path, SAMPLE_RATE)
        assert np.array_equal(decode(path, SAMPLE_RATE), expected)


@pytest.mark.parametrize("seconds", [0, 1, 1_000])
def test_patience_grows_with_the_file(seconds: int) -> None:
    assert decoding.patience(seconds * 44_100) >= 8 + seconds / 2
