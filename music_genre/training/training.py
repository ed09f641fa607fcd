"""Train a model on a split, or go on where an earlier attempt ended.

torch is imported only once there is something to train: it takes seconds.
"""

from pathlib import Path
from typing import Any, Final

from music_genre.config import PICTURE_ROWS, THIS_MACHINE, Machine, TrainConfig
from music_genre.dataset import split as dataset
from music_genre.progress import Progress, silent
from music_genre.store import files, keys, locks, runs

RECIPE: Final = 2
"""Raise when the same split and settings would give other weights."""


def train(
    split_dir: Path,
    store: Path,
    config: TrainConfig,
    *,
    into: Path | None = None,
    weights: Path | None = None,
    machine: Machine = THIS_MACHINE,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a model on a split, or go on where an earlier attempt ended.

    Args:
        split_dir: what `split` made.
        store: the artifact folder; the run gets a folder of its own in it.
        config: model, optimizer, loss, schedule, augmentation, seed.
        into: use this run folder instead.
        weights: a file of weights to begin with, instead of random ones.
        machine: device, memory, checkpoints.
        progress: told (steps done, steps in all, an epoch's line or nothing).

    Returns:
        The result: run address, device, validation accuracy, speed.

    Raises:
        InputError: the run folder belongs to other settings, or the model cannot be built.
        StoppedError: a signal came; the checkpoint holds all steps done.
        TemporaryError: another process trains in the run folder, or on the GPU.
    """
    split = dataset.read_split(split_dir)
    settings = runs.RunSettings(
        config=config,
        genres=split.genres,
        features=split.features,
        n_mels=split.features.n_mels if split.features else PICTURE_ROWS,
        data_key=split.data_key,
        split_key=split.key,
        weights=keys.file_checksum(weights) if weights else "",
        recipe=RECIPE,
    )
    run = into or store / "runs" / settings.key
    result = _finished(run, settings, split_dir)
    if result is None:
        with locks.folder_lock(run) as lock:
            result = _finished(run, settings, split_dir)  # while this process came to the lock
            if result is None:
                from music_genre.training import loop

                job = loop.Job(run, lock, settings, split, store, weights, machine, progress)
                runs.claim(run, settings, split_dir)
                files.sweep(run, locked=True)
                result = {**loop.train(job), "reused": False}
    figure = "validation_accuracy"  # what people look for comes first
    return {figure: result[figure], "run": str(run), **result}


def _finished(run: Path, settings: runs.RunSettings, split_dir: Path) -> dict[str, Any] | None:
    """Return what came of a finished run; None where there is something left to train."""
    finished = runs.read_finished(run)
    if finished is None:
        return None
    runs.claim(run, settings, split_dir)
    return {**finished, "reused": True}
