"""Headers that our own code reads: a truncated file is detected before it is decoded."""

from pathlib import Path

import pytest
import soundfile
from conftest import SAMPLE_RATE, tone

from music_genre.audio import headers

FORMATS = {
    "WAV": ("PCM_16", "little"),
    "WAVEX": ("PCM_24", "little"),
    "RF64": ("PCM_16", "little"),
    "W64": ("PCM_16", "little"),
    "AIFF": ("PCM_16", "big"),
    "AU": ("FLOAT", "big"),
    "CAF": ("PCM_16", "big"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_announced_is_compared_with_what_is_there(tmp_path: Path, name: str) -> None:
    subtype = FORMATS[name][0]
    path = tmp_path / "x"
    soundfile.write(path, tone("bass", 1), SAMPLE_RATE, format=name, subtype=subtype)
    width = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}[subtype]
    announced, present = headers.data_bytes(path)
    assert announced == 2 * SAMPLE_RATE * width
    assert present >= announced
    path.write_bytes(path.read_bytes()[:50_001])
    cut_announced, cut_present = headers.data_bytes(path)
    assert cut_announced == announced
    assert 45_000 < cut_present < 50_001


def test_a_big_endian_wav_is_known(tmp_path: Path) -> None:
    path = tmp_path / "x"
    soundfile.write(path, tone("bass", 1), SAMPLE_RATE, format="WAV", endian="BIG")
    assert path.read_bytes()[:4] == b"RIFX"
    assert headers.data_bytes(path) == (4 * SAMPLE_RATE, 4 * SAMPLE_RATE)


@pytest.mark.parametrize(
    ("name", "where", "size"),
    [
        ("WAV", b"data", b"\xff" * 4),
        ("WAV", b"data", b"\x00\xf0\xff\x7f"),
        ("CAF", b"data", b"\xff" * 8),
    ],
)
def test_unknown_lengths_announce_nothing(
    tmp_path: Path, name: str, where: bytes, size: bytes
) -> None:
    path = tmp_path / "x"
    soundfile.write(path, tone("bass", 1), SAMPLE_RATE, format=name)
    data = bytearray(path.read_bytes())
    first = data.index(where) + 4
    data[first : first + len(size)] = size
    path.write_bytes(data)
    assert headers.data_bytes(path) == (0, 0)


@pytest.mark.parametrize("name", [*FORMATS, "FLAC", "OGG"])
def test_no_beginning_of_a_file_confuses(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x"
    soundfile.write(path, tone("bass", 1), SAMPLE_RATE, format=name)
    data = path.read_bytes()
    for size in range(200):
        path.write_bytes(data[:size])
        announced, present = headers.data_bytes(path)
        assert announced >= 0
        assert 0 <= present <= size
