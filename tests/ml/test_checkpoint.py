"""Checkpoints: the last two are kept, and a damaged one is never used."""

import errno
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from music_genre.errors import InputError
from music_genre.model import checkpoint
from music_genre.store import files, records

CPU = torch.device("cpu")


def save(run: Path, step: int, key: str = "k") -> Path:
    weights = {"x": torch.arange(300) + step}
    return checkpoint.save(run, {"weights": weights, "averaged": None, "step": step, "run": key})


def test_a_checkpoint_reads_back(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path, "k") is None
    save(tmp_path, 5)
    state = checkpoint.load_newest(tmp_path, "k")
    assert state is not None
    assert state["step"] == 5
    assert torch.equal(state["weights"]["x"], torch.arange(300) + 5)


def test_the_last_two_are_kept_whatever_their_steps_digits(tmp_path: Path) -> None:
    made = [save(tmp_path, step) for step in (9, 99_999_999, 100_000_000)]
    assert checkpoint.find(tmp_path) == [made[2], made[1]]
    assert sorted(tmp_path.iterdir()) == sorted(made[1:])


@pytest.mark.parametrize(
    "damage", [lambda b: b[:0], lambda b: b[:-9], lambda b: b[:700] + b"x" + b[701:]]
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage
) -> None:
    older, newer = save(tmp_path, 5), save(tmp_path, 8)
    newer.write_bytes(damage(newer.read_bytes()))
    state = checkpoint.load_newest(tmp_path, "k")
    assert state is not None
    assert state["step"] == 5
    assert f"{newer}: damaged" in caplog.text
    assert not newer.exists()  # renamed, so it is not one of the two checkpoints to keep
    assert newer.with_suffix(".damaged").exists()
    older.write_bytes(b"")
    assert checkpoint.load_newest(tmp_path, "k") is None
    assert f"{older}: damaged" in caplog.text


def test_what_the_disk_cannot_read_is_damaged_and_what_may_not_be_read_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 5)
    newer = save(tmp_path, 8)
    usual, number = Path.read_bytes, errno.EACCES

    def fail(path: Path) -> bytes:
        if path == newer:
            raise OSError(number, "", str(path))
        return usual(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(PermissionError):
        checkpoint.load_newest(tmp_path, "k")
    number = errno.EIO
    state = checkpoint.load_newest(tmp_path, "k")
    assert state is not None
    assert state["step"] == 5


def test_a_whole_file_that_torch_cannot_read_is_refused_and_kept(tmp_path: Path) -> None:
    """Another version of torch might read the file; an older checkpoint would lose steps."""
    save(tmp_path, 5)
    strange = b"not of torch"
    digest = hashlib.blake2b(strange, digest_size=16).hexdigest()
    newer = tmp_path / f"checkpoint-00000008.{digest}.pt"
    newer.write_bytes(strange)
    with pytest.raises(InputError, match="intact, but this version of torch cannot read it"):
        checkpoint.load_newest(tmp_path, "k")
    assert newer.exists()


@pytest.mark.parametrize("reason", ["out of memory", "DefaultCPUAllocator: can't allocate memory"])
def test_lack_of_memory_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    path = save(tmp_path, 5)
    error = torch.OutOfMemoryError if reason == "out of memory" else RuntimeError

    def load(*_: object, **__: object) -> None:
        raise error(f"[enforce fail] {reason}: you tried to allocate memory of 1 TB")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(MemoryError):
        checkpoint.load_newest(tmp_path, "k")
    assert path.exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 5, key="other")
    with pytest.raises(InputError, match=r"to another run \(other, not k\)"):
        checkpoint.load_newest(tmp_path, "k")


def test_weights_of_an_unfinished_run_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(InputError, match="has not finished; run train again"):
        checkpoint.load_last(tmp_path)


def test_a_finished_run_whose_last_checkpoint_is_bad_names_the_way_back(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    records.write_json(tmp_path / "training.json", {"checkpoint": path.name})
    assert torch.equal(checkpoint.load_last(tmp_path)[1]["weights"]["x"], torch.arange(300) + 1)
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=r"damaged.*delete .*training\.json and run train again"):
        checkpoint.load_last(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"missing\); delete .*training\.json and run train again"):
        checkpoint.load_last(tmp_path)


@pytest.mark.parametrize("room", [0, 1, 600, 2000])
def test_a_disk_that_fills_up_leaves_the_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    before = [save(tmp_path, 1), save(tmp_path, 2)]
    true_write = files.atomic_write

    class Full(io.BytesIO):
        def write(self, data: bytes) -> int:
            if self.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    @contextmanager
    def full(*arguments: Any) -> Iterator[IO[bytes]]:
        with true_write(*arguments):
            yield Full()

    monkeypatch.setattr(files, "atomic_write", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 3)
    assert sorted(tmp_path.iterdir()) == sorted(before)
