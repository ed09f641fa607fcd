"""`make same` reports nothing for copies, reports each planted change, and refuses wrong input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Prepared
from PIL import Image

from tests import same


@pytest.fixture
def stores(prepared: Prepared, trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two equal artifact folders of a whole pipeline."""
    both = (tmp_path / "base", tmp_path / "head")
    for store in both:
        for folder in (prepared.catalogue, prepared.images, prepared.split, trained):
            shutil.copytree(folder, store / folder.relative_to(prepared.store))
        for path in store.rglob("*.json"):
            path.write_text(path.read_text().replace(str(prepared.store), str(store)))
    return both


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_copies_are_equal_whatever_their_times(stores: tuple[Path, Path]) -> None:
    base, head = stores
    (result,) = head.rglob("training.json")
    speed = json.loads(result.read_text())["images_per_second"]
    change(result, f'"images_per_second": {speed}', '"images_per_second": 1.5')
    found, counts = same.compare(base, head)
    assert found == []
    assert counts[".png"] >= 15
    assert counts[".pt"] >= 1


def test_a_pixel_is_found(stores: tuple[Path, Path]) -> None:
    base, head = stores
    picture = sorted((head / "images").rglob("*.png"))[3]
    with Image.open(picture) as image:
        changed = image.copy()
    changed.putpixel((7, 5), changed.getpixel((7, 5)) ^ 1)
    changed.save(picture)
    (line,), _ = same.compare(base, head)
    assert line.startswith(str(picture.relative_to(head)))
    assert line.endswith("pixels: 1 of 11136 values differ, the first at (5, 7)")


def test_a_row_is_found(stores: tuple[Path, Path]) -> None:
    base, head = stores
    (split,) = head.rglob("split.csv")
    change(split, ",train", ",test")
    (line,), _ = same.compare(base, head)
    assert "split.csv" in line
    assert line.endswith("split: 'train', now 'test'")


def test_a_weight_is_found(stores: tuple[Path, Path]) -> None:
    base, head = stores
    newest = max(head.rglob("checkpoint-*.pt"))
    state = torch.load(newest, weights_only=True)
    name, tensor = next(iter(state["weights"].items()))
    tensor.view(-1)[0].nextafter_(torch.tensor(9.0))
    torch.save(state, newest)
    (line,), _ = same.compare(base, head)
    assert f" weights {name}: 1 of {tensor.numel()} values differ, the first at (0" in line


def test_a_figure_is_found(stores: tuple[Path, Path]) -> None:
    base, head = stores
    (measured,) = head.rglob("metrics.json")
    change(measured, '"n_tracks": ', '"n_tracks": 1')
    (line,), _ = same.compare(base, head)
    assert "metrics.json n_tracks: " in line


def test_a_file_that_is_not_made_any_more_is_found(stores: tuple[Path, Path]) -> None:
    base, head = stores
    (head / "images").rename(head / "pictures")
    found, _ = same.compare(base, head)
    assert any(line.endswith(": only in base") for line in found)
    assert any(line.endswith(": only in head") for line in found)


def test_nothing_is_not_equal_to_nothing(tmp_path: Path) -> None:
    found, _ = same.compare(tmp_path, tmp_path)
    assert found == [f"no {kind} file was made" for kind in (".csv", ".json", ".png", ".pt")]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository of one commit."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "file").touch()
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=me", "-c", "user.email=me@localhost", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize(
    ("base", "changed", "words"),
    [
        ("no-such-commit", False, "BASE=no-such-commit is no commit here; name one, as in BASE="),
        ("HEAD", True, "the working tree has changes (?? new); commit or stash them first"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    clone: Path,
    base: str,
    changed: bool,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if changed:
        (clone / "new").touch()
    monkeypatch.setattr(same, "REPOSITORY", clone)
    assert same.main([base]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    assert words in line


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_commit_is_equal_to_itself_in_ninety_seconds(figures: dict[str, str]) -> None:
    command = [sys.executable, "tests/same.py", "HEAD"]
    ended = subprocess.run(command, cwd=same.REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures["make same BASE=HEAD"] = ended.stdout.splitlines()[-1]
