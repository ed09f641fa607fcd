"""Splits by group, and images as one tensor."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Prepared, contents
from hypothesis import given
from hypothesis import strategies as st

from music_genre import dataset
from music_genre.artifacts import read_table
from music_genre.config import SPLITS, SplitConfig
from music_genre.dataset import Example
from music_genre.errors import InputError


def make_examples(sizes: dict[str, list[int]]) -> list[Example]:
    """Genre -> clips of each of its groups."""
    return [
        Example(f"{genre}/{group}.{clip}", genre, f"{genre} {group}", "")
        for genre, groups in sizes.items()
        for group, n_clips in enumerate(groups)
        for clip in range(n_clips)
    ]


GENRE_SIZES = st.dictionaries(
    st.text("abc", min_size=1), st.lists(st.integers(1, 5), min_size=3, max_size=30), min_size=1
)


@given(GENRE_SIZES, st.integers(0, 99), st.floats(0.01, 0.6), st.floats(0.01, 0.39))
def test_no_group_is_in_two_splits_and_every_genre_is_in_all(
    sizes: dict, seed: int, test: float, validation: float
) -> None:
    examples = make_examples(sizes)
    config = SplitConfig(seed=seed, test=test, validation=validation)
    dealt = dataset.assign_splits(examples, config)
    assert [e.path for e in dealt] == [e.path for e in examples]
    groups = {name: {e.group for e in dealt if e.split == name} for name in SPLITS}
    assert sum(map(len, groups.values())) == len({e.group for e in examples})
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    assert not groups["validation"] & groups["test"]
    for name in SPLITS:
        assert {e.genre for e in dealt if e.split == name} == set(sizes)


def test_shares_are_of_groups_within_each_genre() -> None:
    dealt = dataset.assign_splits(make_examples({"a": [3] * 20, "b": [1] * 20}), SplitConfig())
    for genre, clips in (("a", 3), ("b", 1)):
        counts = [sum(e.genre == genre and e.split == name for e in dealt) for name in SPLITS]
        assert counts == [12 * clips, 3 * clips, 5 * clips]


def test_the_seed_decides_and_order_does_not() -> None:
    examples = make_examples({"a": [1] * 20, "b": [1] * 20})
    deal = lambda items, seed: {  # noqa: E731
        e.path: e.split for e in dataset.assign_splits(items, SplitConfig(seed=seed))
    }
    assert deal(examples, 1) == deal(examples[::-1], 1) != deal(examples, 2)


def test_a_group_of_two_genres_is_dealt_once() -> None:
    examples = make_examples({"a": [1] * 9, "b": [1] * 9})
    shared = [Example("a/s", "a", "both", ""), Example("b/s", "b", "both", "")]
    dealt = dataset.assign_splits(examples + shared, SplitConfig())
    assert len({e.split for e in dealt if e.group == "both"}) == 1


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(InputError, match="genre b: 2 groups"):
        dataset.assign_splits(make_examples({"a": [1] * 9, "b": [5, 5]}), SplitConfig())


@pytest.mark.parametrize(("test", "validation"), [(0, 0.5), (0.5, 0), (0.5, 0.5)])
def test_impossible_shares_are_refused(test: float, validation: float) -> None:
    with pytest.raises(InputError, match="lower them"):
        SplitConfig(test=test, validation=validation)


def test_a_split_holds_every_track_and_its_image(prepared: Prepared) -> None:
    split = dataset.read_split(prepared.split)
    assert len(split.examples) == 15
    assert [len(split.examples_in(name)) for name in SPLITS] == [9, 3, 3]
    assert all((split.images_dir / e.image).exists() for e in split.examples)
    rows = read_table(prepared.split / "split.csv")
    assert list(rows[0]) == ["path", "genre", "group", "image", "split"]


def test_a_second_split_does_nothing(prepared: Prepared) -> None:
    before = contents(prepared.split)
    config = SplitConfig()
    result = dataset.split(prepared.catalogue, prepared.images, prepared.store, config)
    assert (result["split"], result["reused"]) == (str(prepared.split), True)
    assert contents(prepared.split) == before
    other = dataset.split(prepared.catalogue, prepared.images, prepared.store, SplitConfig(seed=1))
    assert other["split"] != result["split"]


def test_the_store_may_move(prepared: Prepared, tmp_path: Path) -> None:
    shutil.copytree(prepared.store, tmp_path / "moved")
    split = dataset.read_split(tmp_path / "moved" / "splits" / prepared.split.name)
    assert split.images_dir == tmp_path / "moved" / "images" / prepared.images.name


def test_tracks_without_images_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(prepared.images, images)
    next(images.rglob("*.png")).unlink()
    with pytest.raises(InputError, match=r"1 of 15 tracks have no image yet .* run extract"):
        dataset.split(prepared.catalogue, images, tmp_path, SplitConfig())


def test_rejected_tracks_are_left_out_with_their_reason(prepared: Prepared, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(prepared.images, images)
    image = sorted((images / "bass").glob("*.png"))[0]
    image.with_suffix(".rejected").write_text("silent\n")
    image.unlink()
    result = dataset.split(prepared.catalogue, images, tmp_path, SplitConfig())
    assert result["train"] + result["validation"] + result["test"] == 14
    rows = read_table(Path(result["split"]) / "rejected.csv")
    assert rows == [{"path": "bass/bass.00000.wav", "reason": "silent"}]


def test_artists_can_be_kept_together(prepared: Prepared, tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue"
    shutil.copytree(prepared.catalogue, catalogue)
    table = (catalogue / "catalogue.csv").read_text().splitlines()
    columns = table[0].split(",")
    rows = [line.split(",") for line in table[1:]]
    for row in rows:
        row[columns.index("artist")] = row[0][-5:]  # no artist has an own genre
        row[columns.index("artist")] = f"artist {row[0][-5]} {row[1]}"
    (catalogue / "catalogue.csv").write_text("\n".join([table[0], *map(",".join, rows)]))
    result = dataset.split(catalogue, prepared.images, tmp_path, SplitConfig(group_by="artist"))
    split = dataset.read_split(Path(result["split"]))
    assert {e.group for e in split.examples} == {row[columns.index("artist")] for row in rows}


def test_without_an_artist_a_recording_still_stays_together(
    prepared: Prepared, tmp_path: Path
) -> None:
    result = dataset.split(
        prepared.catalogue, prepared.images, tmp_path, SplitConfig(group_by="artist")
    )
    by_track = dataset.split(prepared.catalogue, prepared.images, tmp_path, SplitConfig())
    groups = {
        name: [example.group for example in dataset.read_split(Path(made["split"])).examples]
        for name, made in (("artist", result), ("track", by_track))
    }
    assert groups["artist"] == groups["track"]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures in genre folders"):
        dataset.find_pictures(tmp_path)


def test_crops_are_the_images_and_wrap_at_their_end() -> None:
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, (4, n), dtype=np.uint8) for n in (10, 3, 7)]
    images = dataset.stack_images(arrays, [0, 1, 0])
    crops = images.crops(torch.tensor([0, 1, 2]), torch.tensor([8, 0, 1]), 5)
    assert crops.shape == (3, 1, 4, 5)
    for crop, array, start in zip(crops, arrays, (8, 0, 1), strict=True):
        columns = (start + np.arange(5)) % array.shape[1]
        expected = array[:, columns] / 63.75 - 2
        np.testing.assert_allclose(crop[0].numpy(), expected, atol=1e-6)
