"""Keys, safe writes and references."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from music_genre.errors import InputError
from music_genre.store import addresses, files, keys, records, tables


def test_a_content_key_depends_on_contents_not_on_order() -> None:
    assert keys.content_key({"a": 1, "b": 2}) == keys.content_key({"b": 2, "a": 1})
    assert keys.content_key({"a": 1}) != keys.content_key({"a": 2})
    assert keys.content_key("a", "b") != keys.content_key("ab")
    assert len(keys.content_key("x")) == 12


def test_a_content_key_is_the_same_on_every_machine() -> None:
    assert keys.content_key("ä", 1, {"x": 0.1}) == "af662ff1d72b"


def test_other_storages_are_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match="s3://bucket/x: only local folders"):
        addresses.local_path("s3://bucket/x")


def test_a_failed_write_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    files.write_text(tmp_path / "x", "old")

    def fail() -> None:
        with files.atomic_write(tmp_path / "x") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "x").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_a_failed_write_names_the_file(tmp_path: Path) -> None:
    def fill_the_disk() -> None:
        with files.atomic_write(tmp_path / "x"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        fill_the_disk()
    assert caught.value.filename == str(tmp_path / "x")


def test_only_old_unfinished_files_are_swept(tmp_path: Path) -> None:
    for name in (".tmp-old", ".tmp-new", "old.png", ".hidden"):
        (tmp_path / name).touch()
        if "new" not in name:
            os.utime(tmp_path / name, (0, 0))
    files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".tmp-new", "old.png", ".hidden"}
    files.sweep(tmp_path / "nowhere")


def test_nothing_is_seen_under_the_name_before_all_is_written(tmp_path: Path) -> None:
    with files.atomic_write(tmp_path / "new" / "x") as file:
        file.write(b"all")
        assert not (tmp_path / "new" / "x").exists()
    assert (tmp_path / "new" / "x").read_bytes() == b"all"


NAMES = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.tuples(NAMES, NAMES), min_size=1))
def test_tables_keep_any_text(tmp_path_factory: pytest.TempPathFactory, cells: list) -> None:
    path = tmp_path_factory.mktemp("table") / "x.csv"
    rows = [{"a": a, "b": b} for a, b in cells]
    tables.write_table(path, rows, ["a", "b"])
    assert tables.read_table(path) == rows


def test_tables_keep_names_that_are_no_utf8(tmp_path: Path) -> None:
    rows = [{"a": os.fsdecode(b"caf\xe9")}]
    tables.write_table(tmp_path / "x.csv", rows, ["a"])
    assert tables.read_table(tmp_path / "x.csv") == rows


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json: not "):
        records.read_json(tmp_path / "x.json")


def test_a_missing_record_names_its_stage(tmp_path: Path) -> None:
    assert records.read_json(tmp_path / "x.json") is None
    with pytest.raises(InputError, match=r"contains no x\.json; run scan"):
        records.read_record(tmp_path / "x.json", "run scan")


@pytest.mark.parametrize(
    ("target", "base", "written"),
    [("/a/b/c", "/a/d/e", "../../b/c"), ("/a", "/b/c", "/a"), ("/a/b", "/a/b", ".")],
)
def test_references_are_relative_where_folders_move_together(
    target: str, base: str, written: str
) -> None:
    assert addresses.reference(Path(target), Path(base)) == written
    assert addresses.resolve(written, Path(base)) == Path(target)
