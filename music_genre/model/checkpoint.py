"""Checkpoints of a run: each is written atomically and hashed, and the last two are kept."""

import errno
import hashlib
import io
import logging
import pickle
import re
from pathlib import Path
from typing import IO, Any, Final

import torch

from music_genre.errors import InputError
from music_genre.store import files, runs

logger = logging.getLogger(__name__)

KEPT: Final = 2
NAME: Final = re.compile(r"checkpoint-(\d{8,})\.([0-9a-f]{32})\.pt")
"""A checkpoint's file name: step, and 32 hexadecimal digits of BLAKE2b over the file's bytes."""
UNREADABLE: Final = (
    *(RuntimeError, pickle.UnpicklingError, EOFError, ValueError),
    *(LookupError, TypeError, AttributeError),
)
"""Exceptions that torch.load raises for a file that it cannot read."""


class DamagedError(InputError):
    """A checkpoint has changed, or the disk cannot read it; an older checkpoint might be intact."""


class _HashedFile:
    """File for torch.save that hashes the data.

    It keeps an OSError for the caller, because torch.save would raise a different error instead.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hash = file, hashlib.blake2b(digest_size=16)
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write data and hash it, unless an earlier write failed."""
        if self.error is None:
            try:
                self.file.write(data)
                self.hash.update(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing: `atomic_write` flushes the file."""


def save(run: Path, state: dict[str, Any]) -> Path:
    """Write a checkpoint and delete all but the last two.

    Old checkpoints are deleted only after the new one is on the disk. So a crash or a full disk
    leaves the previous checkpoint intact.

    Args:
        run: the run folder.
        state: contents that torch.load can read with weights_only; must include "step".

    Returns:
        The path of the checkpoint; its name contains the step and a hash of the contents.

    Raises:
        OSError: the checkpoint cannot be written.
    """
    path = run / f"checkpoint-{state['step']:08}.pt"

    def named_by_contents() -> Path:
        return path.with_suffix(f".{hashed.hash.hexdigest()}.pt")

    with files.atomic_write(path, named_by_contents) as file:
        hashed = _HashedFile(file)
        torch.save(state, hashed)  # type: ignore[arg-type]  # it only calls write and flush
        if hashed.error is not None:
            raise hashed.error
    for old in find(run)[KEPT:]:
        old.unlink(missing_ok=True)
    return named_by_contents()


def find(run: Path) -> list[Path]:
    """List a run's checkpoints, the newest first."""
    named = [(match, path) for path in run.glob("checkpoint-*.pt") if (match := _name(path))]
    order = [(int(match[1]), path.stat().st_mtime_ns, path) for match, path in named]
    return [path for *_, path in sorted(order, reverse=True)]


def load_newest(run: Path, key: str) -> dict[str, Any] | None:
    """Read the newest intact checkpoint onto the CPU; None if no checkpoint is intact.

    Each damaged checkpoint that is found is renamed to end in .damaged, and a warning is logged. An
    intact checkpoint keeps its name, even if it cannot be read because memory is full or because
    another version of torch wrote it.

    Args:
        run: the run folder.
        key: the run's content key; the checkpoint must contain the same key.

    Raises:
        InputError: the checkpoint belongs to another run, or another version of torch wrote it.
    """
    for path in find(run):
        try:
            state = _read(path)
        except DamagedError as error:
            logger.warning("%s; continuing without this checkpoint", error)
            path.rename(path.with_suffix(".damaged"))
            continue
        check_run(path, state, key)
        return state
    return None


def check_run(path: Path, state: dict[str, Any], key: str) -> None:
    """Refuse a checkpoint of another run.

    Raises:
        InputError: the checkpoint contains another run's key.
    """
    if state["run"] != key:
        raise InputError(
            f"{path}: belongs to another run ({state['run']}, not {key}); replace this "
            "file with the run's own checkpoint, or move the file away and run train again"
        )


def load_last(run: Path) -> tuple[Path, dict[str, Any]]:
    """Read the last checkpoint of a finished run onto the CPU.

    Returns:
        The path of the checkpoint, and its contents.

    Raises:
        InputError: the run has not finished, or the checkpoint is gone or damaged, or another
            version of torch wrote it.
    """
    finished = runs.read_finished(run)
    if finished is None:
        raise InputError(f"{run}: its training has not finished; run train again to resume it")
    path = run / finished["checkpoint"]
    try:
        return path, _read(path)
    except (DamagedError, FileNotFoundError) as error:
        reason = f"{path}: missing" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(
            f"{run}: cannot load the last checkpoint ({reason}); delete {run / 'training.json'} "
            "and run train again; train resumes from an older checkpoint if there is one"
        ) from None


def shipped(state: dict[str, Any]) -> dict[str, Any]:
    """Return the weights of the trained model: the averaged weights if the run has them."""
    weights: dict[str, Any] = state["averaged"] or state["weights"]
    return weights


def read_tensors(file: Path | IO[bytes]) -> Any:
    """Read tensors onto the CPU from a file that torch wrote; no code in the file is run.

    Raises:
        ValueError: torch cannot read the file; the message gives the reason in one line.
        MemoryError: the tensors do not fit into memory.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        if "allocate memory" in str(error):  # torch raises RuntimeError if CPU memory is full
            raise MemoryError(str(error).splitlines()[0]) from None
        raise ValueError((str(error) or "nothing in it").splitlines()[0]) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        contents = path.read_bytes()
    except OSError as error:
        if error.errno != errno.EIO:  # for example, no permission: the file is not damaged
            raise
        raise DamagedError(f"{path}: damaged (the disk cannot read it)") from None
    match = _name(path)
    if not match or match[2] != hashlib.blake2b(contents, digest_size=16).hexdigest():
        raise DamagedError(f"{path}: damaged (its contents do not match the hash in its name)")
    try:
        state: dict[str, Any] = read_tensors(io.BytesIO(contents))
    except ValueError as error:
        raise InputError(
            f"{path}: intact, but this version of torch cannot read it ({error}); use the version "
            "of torch that wrote the file"
        ) from None
    return state


def _name(path: Path) -> re.Match[str] | None:
    return NAME.fullmatch(path.name)
