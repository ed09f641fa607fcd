"""Damaged files: each is either drawn as librosa would draw it, or rejected with a reason."""

import os
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from reference import grey_levels, librosa_load, librosa_log_mel

from music_genre.audio import catalogue as audio
from music_genre.config import FeatureConfig
from music_genre.features import extraction as features

CONFIG = FeatureConfig()
SECONDS_EACH = 10.0
BASES = {
    "u8.wav": ("WAV", "PCM_U8", 22_050, 1),
    "s16.wav": ("WAV", "PCM_16", 22_050, 1),
    "stereo.wav": ("WAV", "PCM_16", 44_100, 2),
    "s24.wav": ("WAV", "PCM_24", 22_050, 1),
    "s32.wav": ("WAV", "PCM_32", 16_000, 1),
    "float.wav": ("WAV", "FLOAT", 22_050, 1),
    "adpcm.wav": ("WAV", "IMA_ADPCM", 22_050, 1),
    "extensible.wav": ("WAVEX", "PCM_16", 22_050, 2),
    "long.wav": ("RF64", "PCM_16", 22_050, 1),
    "sony.w64": ("W64", "PCM_16", 22_050, 1),
    "apple.aiff": ("AIFF", "PCM_16", 22_050, 1),
    "sun.au": ("AU", "PCM_16", 22_050, 1),
    "core.caf": ("CAF", "PCM_16", 22_050, 1),
    "free.flac": ("FLAC", "PCM_16", 22_050, 1),
    "xiph.ogg": ("OGG", "VORBIS", 22_050, 1),
    "opus.ogg": ("OGG", "OPUS", 24_000, 1),
    "fraunhofer.mp3": ("MP3", "MPEG_LAYER_III", 22_050, 1),
}

Mutate = Callable[[bytearray, np.random.Generator], bytes]


def cut(data: bytearray, random: np.random.Generator) -> bytes:
    return data[: random.integers(1, len(data))]


def cut_in_the_header(data: bytearray, random: np.random.Generator) -> bytes:
    return data[: random.integers(1, 120)]


def flip_bits(data: bytearray, random: np.random.Generator) -> bytes:
    for _ in range(random.integers(1, 20)):
        data[random.integers(len(data))] ^= 1 << random.integers(8)
    return data


def flip_header_bits(data: bytearray, random: np.random.Generator) -> bytes:
    for _ in range(random.integers(1, 4)):
        data[random.integers(4, 80)] ^= 1 << random.integers(8)
    return data


def lie_in_the_header(data: bytearray, random: np.random.Generator) -> bytes:
    number = random.choice([0, 1, 7, 0x7FFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF])
    struct.pack_into(random.choice(["<I", ">I"]), data, random.integers(1, 20) * 4, number)
    return data


def not_a_number(data: bytearray, random: np.random.Generator) -> bytes:
    struct.pack_into("<f", data, len(data) // 8 * 4, random.choice([np.nan, np.inf, 1e38]))
    return data


def hole(data: bytearray, random: np.random.Generator) -> bytes:
    first = random.integers(len(data))
    last = min(len(data), first + random.integers(1, 20_000))
    data[first:last] = bytes(last - first)
    return data


def lost_piece(data: bytearray, random: np.random.Generator) -> bytes:
    first = random.integers(100, len(data))
    del data[first : first + random.integers(1, 5_000)]
    return data


def noise_after_the_header(data: bytearray, random: np.random.Generator) -> bytes:
    data[100:] = random.bytes(len(data) - 100)
    return data


def more(data: bytearray, random: np.random.Generator) -> bytes:
    return data + random.bytes(random.integers(1, 3_000))


MUTATIONS: list[Mutate] = [
    *(cut, cut_in_the_header, flip_bits, flip_header_bits, lie_in_the_header, not_a_number),
    *(hole, lost_piece, noise_after_the_header, more),
]


def write_bases(folder: Path) -> dict[str, bytes]:
    """Write 2 s of the same music in every format; returns the bytes of each file by name."""
    random = np.random.default_rng(5)
    bases = {}
    for name, (container, subtype, rate, channels) in BASES.items():
        time_ = np.arange(2 * rate) / rate
        wave = 0.3 * np.sin(2 * np.pi * 440 * time_) * np.exp(-time_)
        wave = wave[:, None] + random.normal(0, 0.02, (len(time_), channels))
        soundfile.write(folder / name, wave, rate, format=container, subtype=subtype)
        bases[name] = (folder / name).read_bytes()
    return bases


def write_odd(folder: Path, outside: Path) -> None:
    """Write entries that are no audio files: a folder, links, a pipe, files with other contents.

    The files with other contents have the suffix of an audio file.
    """
    (folder / "folder.wav").mkdir()
    (folder / "empty.ogg").write_bytes(b"")
    (folder / "zeros.mp3").write_bytes(bytes(50_000))
    (folder / "text.flac").write_text("hello " * 9_000)
    (folder / "picture.wav").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(9_000))
    (folder / "out.wav").symlink_to(outside)
    (folder / "nowhere.wav").symlink_to(folder / "gone")
    (folder / "circle.wav").symlink_to(folder / "circle.wav")
    os.mkfifo(folder / "pipe.wav")
    (folder / "null.wav").symlink_to("/dev/null")


def write_mutants(folder: Path, bases: dict[str, bytes], n_mutants: int) -> None:
    """Damage each file in each way in turn; every seventh gets the suffix of a random file."""
    random = np.random.default_rng(1486 + n_mutants)
    names = list(bases)
    for number in range(n_mutants):
        name = names[number % len(names)]
        mutate = MUTATIONS[number // len(names) % len(MUTATIONS)]
        stem, suffix = name.split(".")
        if number % 7 == 0:
            suffix = random.choice(names).split(".")[1]
        mutant = folder / f"{mutate.__name__}-{stem}-{number:03}.{suffix}"
        mutant.write_bytes(bytes(mutate(bytearray(bases[name]), random)))


@pytest.fixture(scope="module", params=[540, pytest.param(5400, marks=pytest.mark.soak)])
def drawn(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, Path, dict[str, str]]:
    """Audio folder, images folder, and reasons of rejections by path; no file may take long."""
    root = tmp_path_factory.mktemp("mutants")
    bases, music = root / "bases", root / "music"
    bases.mkdir()
    (music / "bad").mkdir(parents=True)
    write_mutants(music / "bad", write_bases(bases), request.param)
    write_odd(music / "bad", bases / "s16.wav")
    times = [time.monotonic()]
    note = lambda *_: times.append(time.monotonic())  # noqa: E731
    catalogue = Path(audio.scan(music, root / "store", progress=note)["catalogue"])
    images = Path(features.extract(catalogue, root / "store", CONFIG, progress=note)["images"])
    assert np.diff(times).max() < SECONDS_EACH
    found = audio.read_catalogue(catalogue)
    reasons = {each.path: each.reason for each in found.rejections}
    for track in found.tracks:
        rejection = features.rejection_path(images / features.image_path(track, CONFIG))
        if rejection.exists():
            reasons[track.path] = rejection.read_text().removesuffix("\n")
    return music, images, reasons


@pytest.mark.timeout(1800)
def test_each_is_drawn_or_set_aside_with_one_line(drawn, figures: dict[str, str]) -> None:
    music, images, reasons = drawn
    files = sorted(path.relative_to(music).as_posix() for path in (music / "bad").iterdir())
    assert len(files) >= 500 + 10
    n_drawn = sum(1 for _ in images.rglob("*.png"))
    assert n_drawn + len(reasons) == len(files)
    assert all(reason.strip() and "\n" not in reason for reason in reasons.values())
    figures["mutated files"] = f"{len(files)}, of which {n_drawn} drawn, {len(reasons)} set aside"
    assert n_drawn >= 100, "too many usable files were rejected"
    assert Counter(path.split("-")[0] for path in reasons)["bad/more"] <= len(files) // 25


@pytest.mark.timeout(1800)
def test_what_is_drawn_is_what_librosa_would_draw(drawn) -> None:
    music, images, _ = drawn
    for image in sorted(images.rglob("*.png")):
        (file,) = (music / "bad").glob(f"{image.name.split('.')[0]}.*")
        waveform = librosa_load(file, CONFIG.sample_rate)
        expected = grey_levels(librosa_log_mel(waveform, CONFIG), CONFIG)
        with Image.open(image) as picture:
            pixels = np.asarray(picture).astype(int)
        assert pixels.shape == expected.shape, file.name
        assert np.abs(pixels - expected).max() <= 1, file.name
        assert (pixels == expected).mean() >= 0.999, file.name
