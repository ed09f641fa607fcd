"""Splits by group, and images as one tensor."""

import shutil
from pathlib import Path
from random import Random

import pytest
from conftest import Prepared, contents
from hypothesis import given
from hypothesis import strategies as st

from music_genre.audio.catalogue import read_catalogue
from music_genre.config import SPLITS, FeatureConfig, SplitConfig
from music_genre.dataset import split as dataset
from music_genre.dataset.examples import Example, pair
from music_genre.errors import InputError
from music_genre.store.tables import read_table, write_table


def make_examples(sizes: dict[str, list[int]]) -> list[Example]:
    """Make examples from sizes: genre -> number of clips in each of its groups."""
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


ALONE = [[genre] for genre in range(3)] * 3
"""Three groups of each genre, the fewest that can be split."""
SHARED = st.lists(st.sets(st.integers(0, 2), min_size=1).map(sorted), max_size=30).map(
    lambda groups: ALONE + groups
)
"""For each group, the genres of its tracks; some groups have tracks of several genres."""


def examples_of(groups: list[list[int]]) -> list[Example]:
    return [
        Example(f"{genre}/{group}", f"genre {genre}", f"group {group}", "")
        for group, genres in enumerate(groups)
        for genre in genres
    ]


def deal(examples: list[Example], seed: int = 0) -> dict[str, str]:
    dealt = dataset.assign_splits(examples, SplitConfig(seed=seed))
    return {example.path: example.split for example in dealt}


@given(SHARED, st.integers(0, 9))
def test_a_group_of_several_genres_is_dealt_once(groups: list[list[int]], seed: int) -> None:
    examples = examples_of(groups)
    dealt = deal(examples, seed)
    splits = {example.group: set() for example in examples}
    for example in examples:
        splits[example.group].add(dealt[example.path])
    assert all(len(found) == 1 for found in splits.values())
    for name in SPLITS:
        genres = {example.genre for example in examples if dealt[example.path] == name}
        assert genres == {example.genre for example in examples}


@given(SHARED, st.integers(0, 9), st.randoms())
def test_the_seed_decides_and_order_does_not(
    groups: list[list[int]], seed: int, random: Random
) -> None:
    examples = examples_of(groups)
    shuffled = random.sample(examples, len(examples))
    assert deal(shuffled, seed) == deal(examples, seed)


def test_another_seed_deals_otherwise() -> None:
    examples = make_examples({"a": [1] * 20, "b": [1] * 20})
    assert deal(examples, 1) != deal(examples, 2)


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(0, 2))
def test_a_new_track_moves_three_groups_at_most(genres: list[int], genre: int) -> None:
    """A new track shifts the boundaries between the splits of its genre by one or two places."""
    groups = ALONE + [[genre] for genre in genres]
    before = deal(examples_of(groups))
    after = deal(examples_of([*groups, [genre]]))
    assert sum(after[path] != split for path, split in before.items()) <= 3


def test_shares_are_of_groups_within_each_genre() -> None:
    dealt = dataset.assign_splits(make_examples({"a": [3] * 20, "b": [1] * 20}), SplitConfig())
    for genre, clips in (("a", 3), ("b", 1)):
        counts = [sum(e.genre == genre and e.split == name for e in dealt) for name in SPLITS]
        assert counts == [12 * clips, 3 * clips, 5 * clips]


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(InputError, match="genre b: has 2 groups"):
        dataset.assign_splits(make_examples({"a": [1] * 9, "b": [5, 5]}), SplitConfig())


@pytest.mark.parametrize(("test", "validation"), [(0, 0.5), (0.5, 0), (0.5, 0.5)])
def test_impossible_shares_are_refused(test: float, validation: float) -> None:
    with pytest.raises(InputError, match="sum must be below 1"):
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
        row[columns.index("artist")] = row[0][-5:]  # overwritten by the next line
        row[columns.index("artist")] = f"artist {row[0][-5]} {row[1]}"
    (catalogue / "catalogue.csv").write_text("\n".join([table[0], *map(",".join, rows)]))
    result = dataset.split(catalogue, prepared.images, tmp_path, SplitConfig(group_by="artist"))
    split = dataset.read_split(Path(result["split"]))
    assert {e.group for e in split.examples} == {row[columns.index("artist")] for row in rows}


@pytest.mark.parametrize("other", ["", "A. Spelt Otherwise"])
def test_clips_of_a_recording_stay_together_whatever_artist_they_name(
    prepared: Prepared, tmp_path: Path, other: str
) -> None:
    catalogue = tmp_path / "catalogue"
    shutil.copytree(prepared.catalogue, catalogue)
    rows = read_table(catalogue / "catalogue.csv")
    for number, row in enumerate(rows):
        row["group"] = row["track"] = f"{row['genre']} {number // 2}"
        row["artist"] = f"artist of {row['track']}" if number % 2 else other
    write_table(catalogue / "catalogue.csv", rows, list(rows[0]))
    examples, _ = pair(read_catalogue(catalogue), prepared.images, FeatureConfig(), "artist")
    group_of = {e.path: e.group for e in examples}
    for row in rows:
        same = {group_of[r["path"]] for r in rows if r["track"] == row["track"]}
        assert len(same) == 1


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
