"""Images: one per usable track, drawn by the formula, each made once, shard by shard."""

import faulthandler
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, Prepared, contents, tone
from PIL import Image
from reference import grey_levels, librosa_load, librosa_log_mel

from music_genre.audio import catalogue as audio
from music_genre.audio import decoding
from music_genre.config import FeatureConfig
from music_genre.errors import InputError, TemporaryError
from music_genre.features import extraction as features
from music_genre.features import pictures, spool

CONFIG = FeatureConfig()


def librosa_image(path: Path) -> np.ndarray:
    return grey_levels(librosa_log_mel(librosa_load(path, CONFIG.sample_rate), CONFIG), CONFIG)


@pytest.mark.parametrize(
    ("name", "subtype", "rate", "channels"),
    [
        ("x.wav", "PCM_16", 22_050, 1),
        ("x.wav", "PCM_U8", 22_050, 2),
        ("x.wav", "PCM_24", 44_100, 2),
        ("x.wav", "FLOAT", 8_000, 1),
        ("x.wav", "DOUBLE", 96_000, 6),
        ("x.flac", "PCM_16", 48_000, 2),
        ("x.ogg", "VORBIS", 32_000, 2),
        ("x.mp3", "MPEG_LAYER_III", 44_100, 2),
    ],
)
def test_an_image_equals_librosas_of_any_format(
    tmp_path: Path, name: str, subtype: str, rate: int, channels: int
) -> None:
    wave = np.random.default_rng(2).normal(0, 0.1, (int(4.3 * rate), channels))
    soundfile.write(tmp_path / name, wave, rate, subtype=subtype)
    ours = features.image_of(tmp_path / name, CONFIG).astype(int)
    theirs = librosa_image(tmp_path / name)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1
    assert (ours == theirs).mean() >= 0.9999


def golden_image(folder: Path) -> np.ndarray:
    """The image of a stereo 44.1 kHz file whose integer samples are equal on every machine."""
    state, samples = 1, np.empty(2 * 3 * 44_100, np.int16)
    for index in range(len(samples)):
        state = state * 1_103_515_245 + 12_345 & 0x7FFFFFFF
        step = (index // 20_000) % 5 + 1
        samples[index] = (state >> 20) * step + (index * step % 200 - 100) * 100
    soundfile.write(folder / "x.wav", samples.reshape(-1, 2), 44_100)
    return features.image_of(folder / "x.wav", CONFIG)


# Means of eight bands of rows: they show a shift by half a grey level in any band, but not the
# rounding differences of another machine.
GOLDEN = {2: [139.773, 142.144, 141.997, 137.001, 145.152, 137.866, 131.606, 134.749]}


def test_golden_image_changes_only_with_the_recipe(tmp_path: Path) -> None:
    image = golden_image(tmp_path)
    assert image.shape == (128, 130)
    assert list(GOLDEN) == [features.RECIPE], "a new recipe needs new golden numbers"
    means = image.reshape(8, -1).mean(axis=1)
    np.testing.assert_allclose(means, GOLDEN[features.RECIPE], atol=0.02)


def test_images_are_grey_pngs_named_by_content(prepared: Prepared) -> None:
    tracks = audio.read_catalogue(prepared.catalogue).tracks
    for track in tracks:
        path = prepared.images / features.image_path(track, CONFIG)
        stem, key, suffix = path.name.rsplit(".", 2)
        assert (stem, len(key), suffix) == (Path(track.path).stem, 12, "png")
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (87, 128))
            expected = features.image_of(prepared.audio / track.path, CONFIG)
            assert np.array_equal(np.asarray(image), expected)


def test_a_second_extract_does_nothing(prepared: Prepared) -> None:
    before = contents(prepared.images)
    result = features.extract(prepared.catalogue, prepared.store, CONFIG)
    assert result == {
        "images": str(prepared.images),
        "n_extracted": 0,
        "n_reused": 15,
        "n_rejected": 0,
        "reused": True,
    }
    assert contents(prepared.images) == before


@pytest.mark.parametrize(("n_shards", "n_workers"), [(1, 2), (4, 1), (16, 2)])
def test_shards_and_workers_change_nothing(
    prepared: Prepared, tmp_path: Path, n_shards: int, n_workers: int
) -> None:
    made = 0
    for index in range(1, n_shards + 1):
        result = features.extract(
            prepared.catalogue, tmp_path, CONFIG, shard=(index, n_shards), n_workers=n_workers
        )
        made += result["n_extracted"]
    assert made == 15
    bytes_of = lambda folder: {name: data for name, (_, data) in contents(folder).items()}  # noqa: E731
    assert bytes_of(Path(result["images"])) == bytes_of(prepared.images)


def test_new_tracks_are_extracted_alone(prepared: Prepared, tmp_path: Path) -> None:
    music = tmp_path / "music"
    shutil.copytree(prepared.audio, music)
    store = tmp_path / "store"
    first = features.extract(Path(audio.scan(music, store)["catalogue"]), store, CONFIG)
    soundfile.write(music / "bass" / "new.wav", tone("bass", 77), SAMPLE_RATE)
    soundfile.write(music / "bass" / "bass.00000.wav", tone("bass", 78), SAMPLE_RATE)
    second = features.extract(Path(audio.scan(music, store)["catalogue"]), store, CONFIG)
    assert second["images"] == first["images"]
    assert (second["n_extracted"], second["n_reused"]) == (2, 14)


def test_an_unusable_track_leaves_its_reason_once(prepared: Prepared, tmp_path: Path) -> None:
    music, store = tmp_path / "music", tmp_path / "store"
    shutil.copytree(prepared.audio, music)
    soundfile.write(music / "bass" / "silent.wav", np.zeros(2 * SAMPLE_RATE), SAMPLE_RATE)
    catalogue = Path(audio.scan(music, store)["catalogue"])
    for extracted, reused in ((15, 0), (0, 15)):
        result = features.extract(catalogue, store, CONFIG)
        assert (result["n_extracted"], result["n_reused"]) == (extracted, reused)
        assert result["n_rejected"] == 1
    (rejection,) = Path(result["images"]).rglob("*.rejected")
    assert rejection.read_text().startswith("silent")


def test_audio_that_changed_since_the_scan_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    music, store = tmp_path / "music", tmp_path / "store"
    shutil.copytree(prepared.audio, music)
    catalogue = Path(audio.scan(music, store)["catalogue"])
    soundfile.write(music / "bass" / "bass.00000.wav", tone("bass", 1, 3.0), SAMPLE_RATE)
    with pytest.raises(InputError, match="scan again"):
        features.extract(catalogue, store, CONFIG)
    (music / "bass" / "bass.00000.wav").unlink()
    with pytest.raises(InputError, match="has disappeared since the scan"):
        features.extract(catalogue, store, CONFIG)


def test_audio_that_changed_and_kept_its_size_and_time_is_refused_too(
    prepared: Prepared, tmp_path: Path
) -> None:
    """Otherwise the image of the changed audio would be kept as the image of the original audio."""
    music, store = tmp_path / "music", tmp_path / "store"
    shutil.copytree(prepared.audio, music)
    catalogue = Path(audio.scan(music, store)["catalogue"])
    path = music / "bass" / "bass.00000.wav"
    before = path.stat()
    samples, rate = soundfile.read(path, dtype="int16")
    soundfile.write(path, samples // 2, rate)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(InputError, match=r"bass\.00000\.wav: has changed since the scan"):
        features.extract(catalogue, store, CONFIG)
    soundfile.write(path, samples, rate)
    assert features.extract(catalogue, store, CONFIG)["n_rejected"] == 0


def test_a_name_of_the_greatest_length_fits(tmp_path: Path) -> None:
    (tmp_path / "music" / "bass").mkdir(parents=True)
    name = "ä" * 125 + ".wav"
    soundfile.write(tmp_path / "music" / "bass" / name, tone("bass", 1), SAMPLE_RATE)
    catalogue = Path(audio.scan(tmp_path / "music", tmp_path)["catalogue"])
    assert features.extract(catalogue, tmp_path, CONFIG)["n_extracted"] == 1


def test_a_long_track_goes_through_a_file_and_looks_the_same(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "TILE_FRAMES", 32)
    features._drawer.cache_clear()
    images = Path(features.extract(prepared.catalogue, tmp_path, CONFIG)["images"])
    features._drawer.cache_clear()
    names = [path.relative_to(images) for path in sorted(images.rglob("*.png"))]
    assert len(names) == 15
    for name in names:
        expected = pictures.read_picture(prepared.images / name, 128)
        assert np.array_equal(pictures.read_picture(images / name, 128), expected)


@pytest.mark.parametrize("minutes", [0.1, 30])
def test_memory_does_not_grow_with_length(tmp_path: Path, minutes: float) -> None:
    (tmp_path / "music" / "bass").mkdir(parents=True)
    wave = np.rint(tone("noise", 1, 6.0) * 32_767).astype(np.int16)
    with soundfile.SoundFile(
        tmp_path / "music" / "bass" / "x.wav", "w", SAMPLE_RATE, 1, "PCM_16"
    ) as file:
        for _ in range(int(minutes * 10)):
            file.write(wave)
    catalogue = audio.scan(tmp_path / "music", tmp_path)["catalogue"]
    program = (
        "import resource; from pathlib import Path; from music_genre import config\n"
        "from music_genre.features.extraction import extract\n"
        f"extract(Path({catalogue!r}), Path({str(tmp_path)!r}), config.FeatureConfig())\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    printed = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert int(printed) < 120 * 1024  # KiB
    (image,) = tmp_path.rglob("*.png")
    pixels = pictures.read_picture(image, 128)
    assert pixels.shape == (128, 1 + int(minutes * 10) * len(wave) // 512)


NAMES = [
    *("jazz.00054.wav", "a b.wav", 'it\'s "q".wav', "naïve 音楽.wav", "new\nline.wav", "UPPER.WAV"),
    *("..dots...wav", "$(x);&|*?.wav", "-v.wav", os.fsdecode(b"caf\xe9.wav")),
]


def test_any_name_goes_all_the_way(tmp_path: Path) -> None:
    from music_genre.config import SplitConfig
    from music_genre.dataset import split as dataset

    for place, genre in enumerate(("a genre.x", os.fsdecode(b"m\xfasica"))):
        (tmp_path / "in" / genre).mkdir(parents=True)
        for number, name in enumerate(NAMES):
            wave = tone("bass", 100 * place + number)
            with (tmp_path / "in" / genre / name).open("wb") as file:
                soundfile.write(file, wave, SAMPLE_RATE, format="WAV")
    catalogue = Path(audio.scan(tmp_path / "in", tmp_path)["catalogue"])
    extracted = features.extract(catalogue, tmp_path, CONFIG)
    assert extracted["n_extracted"] == 2 * len(NAMES) - 2  # ..dots counts as a hidden file
    split = dataset.split(catalogue, Path(extracted["images"]), tmp_path, SplitConfig())
    assert Path(split["split"]).is_dir()


def crash(*_: object) -> None:
    faulthandler.disable()  # pytest's fault handler would print a long trace
    os.kill(os.getpid(), 11)


def kill(*_: object) -> None:
    os.kill(os.getpid(), 9)


def test_a_track_whose_decoder_crashes_is_set_aside(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracks = audio.read_catalogue(prepared.catalogue).tracks
    bad = prepared.audio / tracks[4].path
    opened = decoding.open_sound
    monkeypatch.setattr(
        decoding, "open_sound", lambda path: crash() if path == bad else opened(path)
    )
    result = features.extract(prepared.catalogue, tmp_path, CONFIG)
    assert (result["n_extracted"], result["n_rejected"]) == (14, 1)
    (rejection,) = Path(result["images"]).rglob("*.rejected")
    assert rejection.read_text() == "its decoder crashed (SIGSEGV)\n"


def test_a_killed_worker_is_no_fault_of_the_track(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "open_sound", kill)
    with pytest.raises(TemporaryError, match="perhaps because memory ran out"):
        features.extract(prepared.catalogue, tmp_path, CONFIG)
    assert not list(tmp_path.rglob("*.rejected"))
