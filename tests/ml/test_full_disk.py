"""A disk that is full at any write: one error line, earlier files intact, and a retry completes."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Prepared, Run, contents

from music_genre.model import checkpoint

DISK_BYTES = 48 * 2**20
LEFT = [0, 4096, 8192, 16_384, 65_536, 2**18, 2**20, 2**22, 2**23]
"""Bytes that are left on the disk when a command begins."""
TRAINING = [
    "--model=mnasnet0_5",
    "--epochs=1",
    "--batch-size=3",
    "--crop-frames=32",
    "--learning-rate=0.003",
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small, real file system, mounted for one test."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    place = tmp_path / "disk"
    place.mkdir()
    size = f"size={DISK_BYTES}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place])
    if mounted.returncode:
        pytest.skip("this container may not mount a small disk")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path, left: int) -> Path:
    """Write a file that leaves `left` bytes of the disk free."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - left))
    return ballast


def stages(prepared: Prepared, store: Path) -> dict[str, list[str | Path]]:
    """Commands that write, except extract (see test_storage) and evaluate (needs a trained run)."""
    chosen = ["--artifacts", store]
    listed = ["--catalogue", prepared.catalogue, *chosen]
    return {
        "scan": ["scan", "--audio", prepared.audio, *chosen],
        "split": ["split", *listed, "--images", prepared.images],
        "train": ["train", "--split", prepared.split, *chosen, "--device=cpu", *TRAINING],
        "stream": [
            *("train", "--split", prepared.split, *chosen, "--device=cpu", *TRAINING),
            *("--data=streamed", "--seed=1"),
        ],
    }


def try_with_ever_more_room(disk: Path, attempt: Callable[[], tuple[int, str]]) -> int:
    """Run a command with ever more free space until it succeeds; returns how often it failed."""
    n_refused = 0
    for left in LEFT:
        ballast = fill(disk, left)
        before = contents(disk)
        code, error = attempt()
        if code == 0:
            return n_refused
        assert code == 75, error
        assert "No space left on device" in error
        after = contents(disk)
        assert not [name for name in after if ".tmp-" in name]
        for name, (_, data) in before.items():
            # Each attempt writes its own lock, and its own times into the history.
            if Path(name).name not in ("ballast", ".lock", "history.csv"):
                assert after[name][1] == data, name
        n_refused += 1
    ballast.unlink()
    code, error = attempt()
    assert code == 0, error
    return n_refused


@pytest.mark.parametrize("stage", ["scan", "split", "train", "stream"])
def test_a_full_disk_ends_a_stage_with_one_line_and_the_retry_completes(
    prepared: Prepared, disk: Path, run: Run, stage: str
) -> None:
    def attempt() -> tuple[int, str]:
        outcome = run(*stages(prepared, disk / "store")[stage])
        return outcome.code, outcome.error if outcome.code else ""

    assert try_with_ever_more_room(disk, attempt) >= 2


def test_a_full_disk_ends_an_evaluation_with_one_line(
    prepared: Prepared, trained: Path, disk: Path, run: Run
) -> None:
    for folder in ("splits", "images"):
        (disk / folder).symlink_to(prepared.store / folder)
    copied = disk / "runs" / "run"
    copied.mkdir(parents=True)
    for name in ("settings.json", "training.json", "history.csv"):
        shutil.copy(trained / name, copied)
    for path in checkpoint.find(trained):
        (copied / path.name).symlink_to(path)

    def attempt() -> tuple[int, str]:
        outcome = run("evaluate", "--run", copied, "--device=cpu")
        return outcome.code, outcome.error if outcome.code else ""

    assert try_with_ever_more_room(disk, attempt) >= 2


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(
    prepared: Prepared, disk: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    command = [*stages(prepared, disk)["train"], "--run", disk / "run", "--checkpoint-seconds=0"]
    fill(disk, 12 * 2**20)  # a checkpoint takes about 8 MiB
    outcome = run(*command)
    assert outcome.code == 75
    assert "No space left on device" in outcome.error
    (left,) = checkpoint.find(disk / "run")
    assert left.name.startswith("checkpoint-00000001.")
    key = left.parent / "settings.json"
    assert key.exists()
    (disk / "ballast").unlink()
    resumed = run(*command)
    assert resumed.code == 0
    assert "resuming at step 1 of" in caplog.text
    assert checkpoint.shipped(checkpoint.load_last(disk / "run")[1])
