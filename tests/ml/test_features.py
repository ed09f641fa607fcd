"""Images: equal to librosa's, made once, shard by shard, one per good track."""

import shutil
from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, Prepared, contents, tone
from PIL import Image

from music_genre import audio, features
from music_genre.config import FeatureConfig
from music_genre.errors import InputError

CONFIG = FeatureConfig()


def librosa_log_mel(waveform: np.ndarray, config: FeatureConfig) -> np.ndarray:
    power = librosa.feature.melspectrogram(
        y=waveform,
        sr=config.sample_rate,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        n_mels=config.n_mels,
    )
    return librosa.power_to_db(power, ref=np.max, top_db=config.dynamic_range_db)


def chords(seconds: float = 8.0) -> np.ndarray:
    """Decaying chords over faint noise: the dynamic range and the onsets of music."""
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
    ours = features.log_mel_spectrogram(WAVES[name], CONFIG)
    theirs = librosa_log_mel(WAVES[name], CONFIG)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape == (128, 1 + len(WAVES[name]) // 512)
    assert np.abs(ours - theirs).max() < 1e-3
    pixels = features.to_pixels(ours, CONFIG)
    expected = np.rint((theirs[::-1] + 80) * 255 / 80).astype(int)
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
    ours = features.log_mel_spectrogram(WAVES["chords"], config)
    assert np.abs(ours - librosa_log_mel(WAVES["chords"], config)).max() < 1e-3


def test_decoding_and_all_equals_librosa_on_a_stereo_file(tmp_path: Path) -> None:
    wave = np.random.default_rng(2).normal(0, 0.1, (3 * 44_100, 2))
    soundfile.write(tmp_path / "x.wav", wave, 44_100)
    mono = librosa.to_mono(soundfile.read(tmp_path / "x.wav", dtype="float32")[0].T)
    loaded = librosa.resample(mono, orig_sr=44_100, target_sr=SAMPLE_RATE)
    decoded = audio.decode(tmp_path / "x.wav", SAMPLE_RATE)
    ours = features.log_mel_spectrogram(decoded, CONFIG)
    assert np.abs(ours - librosa_log_mel(loaded, CONFIG)).max() < 1e-3


def test_filters_equal_librosa() -> None:
    theirs = librosa.filters.mel(sr=22_050, n_fft=2048, n_mels=128)
    np.testing.assert_allclose(features.mel_filters(CONFIG), theirs, rtol=1e-5, atol=1e-9)


def test_pixels_follow_the_law() -> None:
    decibels = np.linspace(-80, 0, 128, dtype=np.float32)[:, None]
    pixels = features.to_pixels(decibels, CONFIG)
    assert pixels.dtype == np.uint8
    assert pixels[-1, 0] == 0  # the lowest band lies in the last row
    assert pixels[0, 0] == 255
    assert set(np.diff(pixels[::-1, 0].astype(int))) == {2, 3}


def golden_image(folder: Path) -> np.ndarray:
    """The image of a stereo 44.1 kHz file whose samples are made from integers alone."""
    state, samples = 1, np.empty(2 * 3 * 44_100, np.int16)
    for index in range(len(samples)):
        state = state * 1_103_515_245 + 12_345 & 0x7FFFFFFF
        step = (index // 20_000) % 5 + 1
        samples[index] = (state >> 20) * step + (index * step % 200 - 100) * 100
    soundfile.write(folder / "x.wav", samples.reshape(-1, 2), 44_100)
    return features.image_of(folder / "x.wav", CONFIG)


# Means of eight bands of rows: they feel half a grey level anywhere, but not the last bit of
# another machine's arithmetic.
GOLDEN = {1: [139.773, 142.144, 141.997, 137.001, 145.152, 137.866, 131.606, 134.749]}


def test_golden_image_changes_only_with_the_recipe(tmp_path: Path) -> None:
    image = golden_image(tmp_path)
    assert image.shape == (128, 130)
    assert list(GOLDEN) == [features.RECIPE], "a new recipe needs new golden numbers"
    means = image.reshape(8, -1).mean(axis=1)
    np.testing.assert_allclose(means, GOLDEN[features.RECIPE], atol=0.02)


def test_images_are_grey_pngs_named_by_content(prepared: Prepared) -> None:
    _, tracks, _ = audio.read_catalogue(prepared.catalogue)
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
    with pytest.raises(InputError, match="is gone"):
        features.extract(catalogue, store, CONFIG)


def test_a_name_of_the_greatest_length_fits(tmp_path: Path) -> None:
    (tmp_path / "music" / "bass").mkdir(parents=True)
    name = "ä" * 125 + ".wav"
    soundfile.write(tmp_path / "music" / "bass" / name, tone("bass", 1), SAMPLE_RATE)
    catalogue = Path(audio.scan(tmp_path / "music", tmp_path)["catalogue"])
    assert features.extract(catalogue, tmp_path, CONFIG)["n_extracted"] == 1


def test_coloured_pictures_become_grey_of_the_right_height(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (432, 288), (200, 200, 200, 0))
    picture.save(tmp_path / "x.png")
    pixels = features.read_image(tmp_path / "x.png", 128)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (128, 192)
    assert np.all(pixels == 200)  # transparency is ignored


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("hello")
    with pytest.raises(InputError, match=r"x\.png: not a picture"):
        features.read_image(tmp_path / "x.png", 128)
    with pytest.raises(InputError, match=r"y\.png: is gone"):
        features.read_image(tmp_path / "y.png", 128)
