"""Pictures are treated like audio: a catalogue, groups, rejections, predictions."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, Prepared, Run, tone, write_music
from PIL import Image

from music_genre.audio.catalogue import scan
from music_genre.config import FeatureConfig, SplitConfig
from music_genre.dataset.split import read_split, split
from music_genre.errors import InputError
from music_genre.features.extraction import extract
from music_genre.features.pictures import PICTURES
from music_genre.store.tables import read_table, write_table

FAST = ("--model=shufflenet_v2_x0_5", "--epochs=1", "--crop-frames=32", "--device=cpu")


class Dealt(NamedTuple):
    """The parts of a split that must be equal for audio and for its pictures."""

    groups: set[frozenset[str]]
    rejections: dict[str, str]


def stem(path: str) -> str:
    return path.rsplit(".", 1)[0]


def read(dealt: Path) -> Dealt:
    groups: dict[str, set[str]] = {}
    for example in read_split(dealt).examples:
        groups.setdefault(example.group, set()).add(stem(example.path))
    rejections = {stem(row["path"]): row["reason"] for row in read_table(dealt / "rejected.csv")}
    return Dealt(set(map(frozenset, groups.values())), rejections)


class Drawn(NamedTuple):
    store: Path
    images: Path
    audio: Dealt


@pytest.fixture
def drawn(tmp_path: Path) -> Drawn:
    """The split and the images of music with clips of one recording, a copy and a silent file."""
    music, store = write_music(tmp_path / "music", n_tracks=8), tmp_path / "store"
    rows = [
        {"path": f"bass/bass.{number:05}.wav", "track_id": f"session {number // 2}", "artist": ""}
        for number in range(6)
    ]
    write_table(music / "tracks.csv", rows, list(rows[0]))
    shutil.copy(music / "lead" / "lead.00000.wav", music / "lead" / "copy.wav")
    soundfile.write(music / "lead" / "silent.wav", np.zeros(2 * SAMPLE_RATE), SAMPLE_RATE)
    catalogue = Path(scan(music, store)["catalogue"])
    images = Path(extract(catalogue, store, FeatureConfig())["images"])
    dealt = read(Path(split(catalogue, images, store, SplitConfig())["split"]))
    assert frozenset({"bass/bass.00002", "bass/bass.00003"}) in dealt.groups
    assert frozenset({"lead/lead.00000", "lead/copy"}) in dealt.groups
    assert list(dealt.rejections) == ["lead/silent"]
    return Drawn(store, images, dealt)


def test_images_that_extract_drew_are_known_for_what_they_are(
    drawn: Drawn, tmp_path: Path, run: Run
) -> None:
    words = ["--images_path", drawn.images, "--checkpoints_path", tmp_path / "run", *FAST]
    dealt = Path(run("train-using-image-features", *words).result["split"])
    assert read(dealt) == drawn.audio
    assert read_split(dealt).features == FeatureConfig()


@pytest.mark.parametrize("beside", [True, False])
def test_pictures_from_elsewhere_have_the_groups_and_rejections_of_their_audio(
    drawn: Drawn, tmp_path: Path, beside: bool
) -> None:
    pictures = tmp_path / "pictures"
    for file in drawn.images.glob("*/*"):
        track, _key, suffix = file.name.rsplit(".", 2)
        (pictures / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, pictures / file.parent.name / f"{track}.{suffix}")
    if beside:
        shutil.copy(tmp_path / "music" / "tracks.csv", tmp_path)
    else:
        shutil.copy(tmp_path / "music" / "tracks.csv", pictures)
    catalogue = Path(scan(pictures, tmp_path / "other", kind=PICTURES)["catalogue"])
    dealt = Path(split(catalogue, None, tmp_path / "other", SplitConfig())["split"])
    assert read(dealt) == drawn.audio
    assert read_split(dealt).features is None


def test_images_without_their_catalogue_still_join_copies_and_can_hear_audio(
    drawn: Drawn, tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(drawn.images, tmp_path / "moved")
    words = ["--images_path", tmp_path / "moved", "--checkpoints_path", tmp_path / "run", *FAST]
    result = run("train-using-image-features", *words).result
    assert "extract drew these images, but the artifact folder has no catalogue" in caplog.text
    found = read(Path(result["split"]))
    assert list(found.rejections.values()) == list(drawn.audio.rejections.values())
    assert sum(len(group) == 2 for group in found.groups) == 1
    soundfile.write(tmp_path / "x.wav", tone("bass", 7), SAMPLE_RATE)
    assert run("predict", "--run", tmp_path / "run", tmp_path / "x.wav").code == 0


def test_images_of_several_catalogues_are_those_of_the_one_that_names_them_all(
    drawn: Drawn, tmp_path: Path, run: Run
) -> None:
    words = ("--images_path", drawn.images, "--checkpoints_path", tmp_path / "run", *FAST)
    music = tmp_path / "music"
    (music / "bass" / "bass.00000.wav").unlink()
    fewer = Path(scan(music, drawn.store)["catalogue"])
    assert read(Path(run("train-using-image-features", *words).result["split"])) == drawn.audio
    soundfile.write(music / "bass" / "new.wav", tone("bass", 77), SAMPLE_RATE)
    other = Path(scan(music, drawn.store)["catalogue"])
    extract(other, drawn.store, FeatureConfig())
    refused = run("train-using-image-features", *words)
    assert refused.code == 65
    assert "none of the 3 catalogues in the artifact folder lists all of them" in refused.error
    (fewer / "catalogue.json").write_text("damaged")
    assert "none of the 2 catalogues" in run("train-using-image-features", *words).error


def test_a_table_of_other_music_beside_the_folder_is_none_of_its_pictures(
    tmp_path: Path, run: Run
) -> None:
    rows = [{"path": "genres_original/rock/a.wav", "track_id": "a"}]
    write_table(tmp_path / "tracks.csv", rows, list(rows[0]))
    pictures = write_pictures(tmp_path / "images")
    scanned = ("scan", "--pictures", pictures, "--artifacts", tmp_path / "store")
    assert run(*scanned).result["n_tracks"] == 10
    shutil.copy(tmp_path / "tracks.csv", pictures)
    assert "lists 1 files, but none of them is in" in run(*scanned).error


def test_pictures_of_an_artist_stay_together_and_links_out_of_the_folder_are_rejected(
    tmp_path: Path,
) -> None:
    pictures = write_pictures(tmp_path / "images")
    (pictures / "blues" / "blues0.png").rename(tmp_path / "elsewhere.png")
    (pictures / "blues" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    rows = [
        {"path": f"blues/blues{number}.png", "track_id": str(number), "artist": f"{number // 3}"}
        for number in range(1, 5)
    ]
    write_table(pictures / "tracks.csv", rows, list(rows[0]))
    shutil.copy(pictures / "jazz" / "jazz0.png", pictures / "blues")
    catalogue = Path(scan(pictures, tmp_path, kind=PICTURES)["catalogue"])
    config = SplitConfig(group_by="artist")
    found = read(Path(split(catalogue, None, tmp_path, config)["split"]))
    assert frozenset({"blues/blues1", "blues/blues2"}) in found.groups
    assert frozenset({"jazz/jazz0", "blues/jazz0"}) in found.groups
    assert found.rejections["blues/link"].startswith("a link that points outside the scanned")


def test_a_picture_that_changed_since_the_scan_is_refused(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "images")
    catalogue = Path(scan(pictures, tmp_path, kind=PICTURES)["catalogue"])
    shutil.copy(pictures / "jazz" / "jazz1.png", pictures / "jazz" / "jazz0.png")
    with pytest.raises(InputError, match=r"jazz0\.png: has .*; scan again"):
        split(catalogue, None, tmp_path, SplitConfig())


def test_a_run_folder_among_the_genres_is_no_genre(tmp_path: Path, run: Run) -> None:
    pictures = write_pictures(tmp_path / "images")
    words = ("--images_path", pictures, "--checkpoints_path", pictures / "run", *FAST)
    trained = run("train-using-image-features", *words).result
    assert trained["reused"] is False
    assert run("train-using-image-features", *words).result["reused"] is True


def write_pictures(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for genre, level in (("blues", 40), ("jazz", 200)):
        (folder / genre).mkdir(parents=True)
        for number in range(5):
            pixels = random.normal(level, 30, (128, 200)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / genre / f"{genre}{number}.png")
    return folder


def test_identical_pictures_stay_together_and_a_broken_one_is_set_aside(
    tmp_path: Path, run: Run
) -> None:
    pictures, kept = write_pictures(tmp_path / "in"), ("--artifacts", tmp_path / "store")
    shutil.copy(pictures / "blues" / "blues0.png", pictures / "blues" / "again.png")
    whole = (pictures / "jazz" / "jazz0.png").read_bytes()
    (pictures / "jazz" / "half.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "jazz" / "notes.txt").write_text("hello")
    scanned = run("scan", "--pictures", pictures, *kept).result
    assert (scanned["n_tracks"], scanned["n_rejected"]) == (11, 2)
    listed = ("--catalogue", scanned["catalogue"], *kept)
    found = read(Path(run("split", *listed).result["split"]))
    assert frozenset({"blues/blues0", "blues/again"}) in found.groups
    assert "truncated" in found.rejections["jazz/half"]
    assert found.rejections["jazz/notes"].startswith("its suffix is not accepted for pictures (")
    assert run("extract", *listed).code == 65
    refused = run("split", *listed, "--images", pictures)
    assert "lists the pictures themselves; omit --images" in refused.error


def test_scan_wants_audio_or_pictures(tmp_path: Path, run: Run) -> None:
    assert "Give either --audio or --pictures." in run("scan").error
    both = run("scan", "--audio", tmp_path, "--pictures", tmp_path)
    assert both.code == 64


def test_audio_is_split_with_its_images(prepared: Prepared, tmp_path: Path, run: Run) -> None:
    refused = run("split", "--catalogue", prepared.catalogue, "--artifacts", tmp_path)
    assert refused.code == 65
    assert "lists audio; give --images, the address that extract printed" in refused.error


def test_a_folder_without_pictures_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in" / "blues").mkdir(parents=True)
    words = ("--images_path", tmp_path / "in", "--checkpoints_path", tmp_path / "run")
    refused = run("train-using-image-features", *words)
    assert refused.code == 65
    assert "arrange files as <genre>/<track>.png" in refused.error
    (tmp_path / "in" / "blues").rename(tmp_path / "images_original")
    (tmp_path / "in").rmdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "images_original").rename(tmp_path / "in" / "images_original")
    hint = run("scan", "--pictures", tmp_path / "in", "--artifacts", tmp_path)
    assert f"give {tmp_path}/in/images_original" in hint.error


def test_a_model_of_pictures_predicts_pictures_and_says_so_of_audio(
    tmp_path: Path, run: Run
) -> None:
    pictures = write_pictures(tmp_path / "in")
    words = ("--images_path", pictures, "--checkpoints_path", tmp_path / "run", *FAST)
    assert run("train-using-image-features", *words).code == 0
    soundfile.write(tmp_path / "x.wav", tone("bass", 7), SAMPLE_RATE)
    (tmp_path / "broken.png").write_text("no")
    told = ("predict", "--run", tmp_path / "run", "--json", pictures)
    outcome = run(*told, tmp_path / "x.wav", tmp_path / "broken.png")
    *named, audio, broken = map(json.loads, outcome.stdout.splitlines())
    assert [Path(each["path"]).name for each in named[:2]] == ["blues0.png", "blues1.png"]
    assert len(named) == 10
    assert set(named[0]["probabilities"]) == {"blues", "jazz"}
    assert audio["error"].startswith("not a picture; the model was trained on pictures")
    assert broken["error"].startswith("not a picture")
    assert outcome.code == 65


def test_an_image_has_the_probabilities_of_its_audio(
    trained: Path, prepared: Prepared, run: Run
) -> None:
    sound = prepared.audio / "bass" / "bass.00000.wav"
    (image,) = prepared.images.glob("bass/bass.00000.*.png")
    found = run("predict", "--run", trained, "--json", sound, image).stdout.splitlines()
    ours, theirs = (json.loads(line)["probabilities"] for line in found)
    assert ours == theirs


def test_a_model_of_audio_takes_no_other_picture(trained: Path, tmp_path: Path, run: Run) -> None:
    Image.new("RGB", (600, 600)).save(tmp_path / "cover.jpg")
    refused = run("predict", "--run", trained, tmp_path / "cover.jpg")
    assert refused.code == 65
    assert "not an image that extract drew" in refused.stderr
