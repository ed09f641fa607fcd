"""Recordings, artists, and copies of one file."""

import shutil
from pathlib import Path

import pytest
from conftest import write_music

from music_genre.audio import catalogue as audio
from music_genre.audio.origins import join_groups
from music_genre.config import FeatureConfig, SplitConfig
from music_genre.dataset import split as dataset
from music_genre.features import extraction as features


@pytest.mark.parametrize(
    ("groups", "checksums", "joined"),
    [
        ("abc", "123", "abc"),
        ("abc", "121", "aba"),
        ("aabbcc", "123425", "aabbaa"),  # one file's copy joins both groups
        ("cba", "111", "aaa"),
        ("abcd", "1221", "abba"),
        ("ddccbbaa", "12233445", "aaaaaaaa"),  # a chain of copies joins all groups
    ],
)
def test_groups_that_hold_copies_are_one(groups: str, checksums: str, joined: str) -> None:
    assert "".join(join_groups(list(groups), list(checksums))) == joined


def test_a_copy_of_a_file_stays_on_its_side_of_the_split(tmp_path: Path) -> None:
    music = write_music(tmp_path / "music", n_tracks=6)
    for number in range(6):
        shutil.copy(music / "bass" / f"bass.{number:05}.wav", music / "bass" / f"copy {number}.wav")
    catalogue = Path(audio.scan(music, tmp_path)["catalogue"])
    images = Path(features.extract(catalogue, tmp_path, FeatureConfig())["images"])
    dealt = dataset.split(catalogue, images, tmp_path, SplitConfig())
    split_of = {e.path: e.split for e in dataset.read_split(Path(dealt["split"])).examples}
    for number in range(6):
        assert split_of[f"bass/copy {number}.wav"] == split_of[f"bass/bass.{number:05}.wav"]
    assert len({split_of[path] for path in split_of if path.startswith("bass")}) == 3
