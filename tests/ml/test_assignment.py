"""Splits that follow a list, either a published one or the user's own."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Prepared, Run

from music_genre.config import SPLITS, SplitConfig
from music_genre.dataset import assignment
from music_genre.dataset import split as dataset
from music_genre.dataset.examples import Example
from music_genre.errors import InputError
from music_genre.store.tables import read_table

GTZAN = "gtzan-fault-filtered"


def test_the_published_list_of_gtzan_is_whole() -> None:
    listed = assignment.read(GTZAN)
    assert Counter(listed.splits.values()) == {"train": 443, "validation": 197, "test": 290}
    rows = read_table(Path(assignment.__file__).with_name("gtzan_fault_filtered.csv"))
    assert len({row["track"] for row in rows}) == len(rows) == 930
    genres = {name.split(".")[0] for name in listed.splits}
    assert len(genres) == 10
    for split in SPLITS:
        assert {n.split(".")[0] for n, s in listed.splits.items() if s == split} == genres
    assert listed.splits["jazz.00054"] == "train"


def test_the_lists_licence_stands_beside_it() -> None:
    folder = Path(assignment.__file__).parent
    text = (folder / "gtzan_fault_filtered.LICENSE.txt").read_text()
    assert "Copyright (c) 2017 Facebook Inc." in text
    assert "Redistributions in binary form must reproduce" in text


def test_gtzan_is_dealt_as_published_whatever_its_files_are_called(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Scan, extract and split .wav and .au files; one track is unreadable, one is not listed."""
    music = tmp_path / "genres"
    expected = {}
    listed = assignment.read(GTZAN).splits
    random = np.random.default_rng(0)
    for genre, suffix in (("blues", "wav"), ("jazz", "au")):
        (music / genre).mkdir(parents=True)
        for split in SPLITS:
            for name in [n for n, s in listed.items() if s == split and n.startswith(genre)][:2]:
                path = f"{genre}/{name}.{suffix}"
                soundfile.write(music / path, random.normal(0, 0.1, 22_050), 22_050)
                expected[path] = split
    (music / "jazz" / "jazz.00054.au").write_bytes(b"damaged as in the original collection")
    unlisted = next(f"{i:05}" for i in range(100) if f"jazz.{i:05}" not in listed)
    soundfile.write(music / f"jazz/jazz.{unlisted}.wav", random.normal(0, 0.1, 22_050), 22_050)

    store = tmp_path / "store"
    catalogue = run("scan", "--audio", music, "--artifacts", store).result["catalogue"]
    images = run("extract", "--catalogue", catalogue, "--artifacts", store).result["images"]
    places = ["--catalogue", catalogue, "--images", images, "--artifacts", store]
    for reused in (False, True):
        caplog.clear()
        dealt = run("split", *places, "--assigned-by", GTZAN).result
        assert dealt["reused"] is reused
        assert [dealt[name] for name in SPLITS] == [4, 4, 4]
        assert (dealt["n_left_out"], dealt["n_listed_unusable"]) == (1, 930 - 12)
        assert dealt["n_rejected"] == 1
        assert f"{GTZAN}: 1 tracks are not listed and are left out" in caplog.messages
        (line,) = [m for m in caplog.messages if "cannot be used" in m]
        assert line.startswith(f"{GTZAN}: 918 listed tracks cannot be used: blues.000")
        assert line.endswith(" and 908 more")
    split = dataset.read_split(Path(dealt["split"]))
    assert {e.path: e.split for e in split.examples} == expected
    again = run("split", *places, "--assigned-by", Path(dealt["split"]) / "split.csv")
    assert [again.result[name] for name in SPLITS] == [4, 4, 4]
    assert (again.result["n_left_out"], again.result["n_listed_unusable"]) == (1, 0)


def test_a_rejected_track_of_the_list_is_named_with_its_reason(
    prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    shutil.copytree(prepared.images, images)
    (image,) = (images / "bass").glob("bass.00000.*.png")
    image.with_suffix(".rejected").write_text("silent\n")
    image.unlink()
    listed = write_list(tmp_path, {**WHOLE, "lost.00000": "train"})
    result = dataset.split(
        prepared.catalogue, images, tmp_path, SplitConfig(), assigned_by=str(listed)
    )
    assert [result[name] for name in SPLITS] == [8, 3, 3]
    assert (result["n_left_out"], result["n_listed_unusable"]) == (0, 2)
    assert (
        "list.csv: 2 listed tracks cannot be used: bass.00000 (silent), lost.00000 (not in the "
        "catalogue)"
    ) in caplog.messages


WHOLE = {
    f"{genre}.{number:05}": ("train", "train", "train", "validation", "test")[number]
    for genre in ("bass", "lead", "noise")
    for number in range(5)
}


def write_list(folder: Path, splits: dict[str, str], column: str = "track") -> Path:
    lines = [f"{column},split", *(f"{name},{split}" for name, split in splits.items())]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


Deal = Callable[..., list[Example]]


@pytest.fixture
def deal(prepared: Prepared, tmp_path: Path) -> Deal:
    """Split the prepared music by a list."""

    def call(splits: dict[str, str], column: str = "track") -> list[Example]:
        path = write_list(tmp_path, splits, column)
        result = dataset.split(
            prepared.catalogue, prepared.images, tmp_path, SplitConfig(), assigned_by=str(path)
        )
        return dataset.read_split(Path(result["split"])).examples

    return call


def test_tracks_are_found_by_path_and_by_name(deal: Deal) -> None:
    by_name = {e.path: e.split for e in deal(WHOLE)}
    folders = {name: name.split(".")[0] for name in WHOLE}
    bare = deal({f"{folders[name]}/{name}": split for name, split in WHOLE.items()})
    paths = deal({f"{folders[name]}/{name}.wav": split for name, split in WHOLE.items()}, "path")
    assert by_name == {e.path: e.split for e in bare} == {e.path: e.split for e in paths}
    assert by_name["bass/bass.00003.wav"] == "validation"
    assert len(by_name) == 15


UNTESTED = {name: split.replace("test", "train") for name, split in WHOLE.items()}
BASS_UNLEARNED = WHOLE | {f"bass.{number:05}": "test" for number in range(5)}


@pytest.mark.parametrize(
    ("splits", "column", "message"),
    [
        ({"a": "train"}, "name", "has no rows, or lacks the columns path (or track) and split"),
        ({}, "track", "has no rows, or lacks the columns path (or track) and split"),
        ({"a": "valid"}, "track", "'valid'] has no track or no valid split; give a track and"),
        ({"": "train"}, "track", "has no track or no valid split"),
        ({"a": "train", "b": "test"}, "track", "none of the 2 listed tracks (for example a) is in"),
        (UNTESTED, "track", "test has no tracks, because none of the 0 tracks listed for test can"),
        (BASS_UNLEARNED, "track", "has no track of genre bass in train"),
    ],
)
def test_a_list_that_cannot_be_followed_is_refused(
    deal: Deal, splits: dict[str, str], column: str, message: str
) -> None:
    with pytest.raises(InputError) as refusal:
        deal(splits, column)
    assert message in str(refusal.value)


def test_a_track_in_two_splits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("track,split\na,train\na,train\na,test\n")
    with pytest.raises(InputError, match="a is listed in train and in test; keep one of"):
        assignment.read(str(tmp_path / "list.csv"))


def test_an_unknown_list_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(InputError, match=r"gtzan-filtered: no such file; .*gtzan-fault-filtered"):
        assignment.read("gtzan-filtered")


def test_a_name_of_two_tracks_is_refused() -> None:
    listed = assignment.Assignment("list.csv", {"x": "train"})
    with pytest.raises(InputError, match=r"x matches both a/x.wav and b/x.wav; list both files by"):
        listed.deal(["a/x.wav", "b/x.wav"])


@pytest.mark.parametrize("group_by", ["track", "artist"])
def test_a_group_that_would_span_splits_is_refused(
    prepared: Prepared, tmp_path: Path, group_by: str
) -> None:
    catalogue = tmp_path / "catalogue"
    shutil.copytree(prepared.catalogue, catalogue)
    rows = read_table(catalogue / "catalogue.csv")
    column = {"track": "group", "artist": "artist"}[group_by]
    for number in (2, 3):  # these rows are in train and in validation
        rows[number][column] = "Shared"
    text = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (catalogue / "catalogue.csv").write_text("\n".join(text) + "\n")
    listed = write_list(tmp_path, WHOLE)
    config = SplitConfig(group_by=group_by)
    with pytest.raises(InputError) as refusal:
        dataset.split(catalogue, prepared.images, tmp_path, config, assigned_by=str(listed))
    assert str(refusal.value) == (
        "list.csv: 1 of 14 groups span splits (the first: Shared is in train (bass/bass.00002.wav) "
        "and validation (bass/bass.00003.wav)); list all tracks of a group in one split, or leave "
        "some of them out"
    )
    assert not (tmp_path / "splits").exists()
