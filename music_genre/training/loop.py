"""Train a model on a split, or continue where an earlier attempt ended.

torch takes seconds to import, so it is imported only when there is something to train.
"""

import logging
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from music_genre.config import PICTURE_ROWS, THIS_MACHINE, Machine, TrainConfig
from music_genre.dataset.split import Split, read_split
from music_genre.errors import StoppedError
from music_genre.progress import Progress, silent
from music_genre.store import files, keys, locks, records, runs, signals, tables

if TYPE_CHECKING:
    import torch

    from music_genre.training.trainer import Trainer

logger = logging.getLogger(__name__)

RECIPE: Final = 2
"""Increase this with every code change that alters the weights for a given split and settings."""


@dataclass(frozen=True)
class Job:
    """A training job for this process."""

    run: Path
    lock: locks.Lock
    """The lock on the run folder."""
    settings: runs.RunSettings
    split: Split
    store: Path
    weights: Path | None
    machine: Machine
    progress: Progress


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
    """Train a model on a split, or continue where an earlier attempt ended.

    Args:
        split_dir: the folder that `split` made.
        store: the artifact folder; the run gets a folder of its own in it.
        config: model, optimizer, loss, schedule, augmentation, seed.
        into: the run folder to use instead of one in `store`.
        weights: a file of initial weights; None for random weights.
        machine: device, data mode, time between checkpoints, folder of the GPU locks.
        progress: called with (steps done, total steps), and after an epoch also with a line about
            the epoch.

    Returns:
        The result: run address, device, validation accuracy, speed.

    Raises:
        InputError: the run folder belongs to other settings, the model cannot be built, the GPU
            has too little memory, or training diverged.
        StoppedError: a signal arrived; all finished steps are saved in the checkpoint.
        TemporaryError: another process trains in the run folder, or on the GPU.
    """
    split = read_split(split_dir)
    settings = _settings(split, config, weights)
    run = into or store / "runs" / settings.key
    result = _finished(run, settings, split_dir)
    if result is None:
        with locks.folder_lock(run) as lock:
            # Look again: another process might have finished the run before we got the lock.
            result = _finished(run, settings, split_dir)
            if result is None:
                runs.claim(run, settings, split_dir)
                files.sweep(run, locked=True)
                job = Job(run, lock, settings, split, store, weights, machine, progress)
                result = {**_go_on(job), "reused": False}
    figure = "validation_accuracy"  # put first, because people look for it
    return {figure: result[figure], "run": str(run), **result}


def _settings(split: Split, config: TrainConfig, weights: Path | None) -> runs.RunSettings:
    return runs.RunSettings(
        config=config,
        genres=split.genres,
        features=split.features,
        n_mels=split.features.n_mels if split.features else PICTURE_ROWS,
        data_key=split.data_key,
        split_key=split.key,
        weights=keys.file_checksum(weights) if weights else "",
        recipe=RECIPE,
    )


def _finished(run: Path, settings: runs.RunSettings, split_dir: Path) -> dict[str, Any] | None:
    """Return the result of a finished run; None if there is something left to train."""
    finished = runs.read_finished(run)
    if finished is None:
        return None
    runs.claim(run, settings, split_dir)
    return {**finished, "reused": True}


def _go_on(job: Job) -> dict[str, Any]:
    """Train to the end, starting from the newest checkpoint if there is one; return the result."""
    from music_genre.model import device  # loads torch

    with device.held(job.machine.device, job.machine.gpu_locks) as chosen:
        trainer = _make_trainer(job, chosen)
        record = _Record(job, trainer)
        with signals.stops(record.where) as stop:
            record.stop = stop
            while not trainer.is_over:
                if trainer.epoch_is_over:
                    record.end_epoch()
                else:
                    trainer.train_step()
                    record.end_step()
                record.heed_stop()
            last = record.save()
            record.heed_stop()
        described = {"device": chosen.type, "device_name": device.describe(chosen)}
    result = described | record.result() | {"checkpoint": last.name, "key": job.settings.key}
    job.lock.check()
    records.write_json(job.run / "training.json", result)
    return result


def _make_trainer(job: Job, chosen: "torch.device") -> "Trainer":
    """Build the model, open the images and restore the newest checkpoint."""
    from music_genre.dataset.crops import open_images
    from music_genre.model import checkpoint
    from music_genre.model.network import build, load_weights_file
    from music_genre.training.trainer import Trainer

    config, split, n_mels = job.settings.config, job.split, job.settings.n_mels
    network = build(config.model, len(split.genres), n_mels, config.crop_frames, config.seed)
    if job.weights is not None:
        load_weights_file(network, job.weights)
    train, validation = (
        open_images(
            split.examples_in(name),
            split.images_dir,
            split.genres,
            n_mels,
            device=chosen,
            store=job.store,
            data_key=split.data_key,
            mode=job.machine.data,
        )
        for name in ("train", "validation")
    )
    trainer = Trainer(config, train, validation, network.to(chosen))
    state = checkpoint.load_newest(job.run, job.settings.key)
    if state is not None:
        trainer.restore(state)
        logger.info("resuming at step %d of %d", trainer.step, trainer.n_steps)
    return trainer


class _Record:
    """Saves checkpoints when due, writes the history and reports progress during a training."""

    def __init__(self, job: Job, trainer: "Trainer") -> None:
        self.job, self.trainer = job, trainer
        self.stop = signals.Stop()
        self.saved_at = self.epoch_began = time.monotonic()
        self.saved = self._reached()
        self.n_images = 0
        self.validation_seconds = 0.0
        # Write history.csv now: if an earlier process was killed just after it saved a checkpoint,
        # the file lacks rows that the checkpoint has.
        self._write_history()

    def end_step(self) -> None:
        """Count a finished step, and save a checkpoint if one is due."""
        trainer = self.trainer
        self.n_images += trainer.batch_size
        self.job.progress(trainer.step, trainer.n_steps)
        if self._is_due():
            self.save()

    def end_epoch(self) -> None:
        """Validate the network after an epoch, and write the epoch's row to the history."""
        if self._is_due(self.validation_seconds):
            self.save()
        trainer, trained_until = self.trainer, time.monotonic()
        row = trainer.end_epoch(self.heed_stop)
        seconds = trained_until - self.epoch_began
        row["images_per_second"] = round(self.n_images / seconds, 1) if self.n_images else 0.0
        row["seconds"] = round(time.monotonic() - self.epoch_began, 2)
        self._write_history()
        line = " ".join(f"{name}={value}" for name, value in row.items())
        self.job.progress(trainer.step, trainer.n_steps, line)
        self.epoch_began, self.n_images = time.monotonic(), 0
        self.validation_seconds = self.epoch_began - trained_until

    def _is_due(self, later: float = 0.0) -> bool:
        """Tell whether progress is unsaved and a checkpoint will be due in `later` seconds."""
        age = time.monotonic() + later - self.saved_at
        return self._reached() != self.saved and age >= self.job.machine.checkpoint_seconds

    def _reached(self) -> tuple[int, int]:
        """Return how many steps are done, and how many epochs are validated."""
        return self.trainer.step, len(self.trainer.history)

    def _write_history(self) -> None:
        """Write history.csv for people; a resumed training reads the history in the checkpoint."""
        history = self.trainer.history
        if history:
            self.job.lock.check()
            tables.write_table(self.job.run / "history.csv", history, list(history[0]))

    def save(self) -> Path:
        """Write a checkpoint, and return its file.

        Raises:
            TemporaryError: another process has taken over the run folder.
            OSError: the checkpoint cannot be written.
        """
        from music_genre.model import checkpoint

        self.job.lock.check()
        settings = self.job.settings
        identity = {"run": settings.key, "settings": asdict(settings)}
        path = checkpoint.save(self.job.run, {**identity, **self.trainer.state()})
        self.saved, self.saved_at = self._reached(), time.monotonic()
        return path

    def heed_stop(self) -> None:
        """If a signal has arrived, save all unsaved steps and end the training.

        Raises:
            StoppedError: a signal arrived.
        """
        if self.stop.name:
            if self._reached() != self.saved:
                self.save()
            raise StoppedError(
                f"stopped by {self.stop.name} {self.where()}; {signals.GO_ON}", self.stop.name
            )

    def where(self) -> str:
        """Return a phrase: the number of finished steps, and how many of them are saved."""
        step, (saved, _) = self.trainer.step, self.saved
        kept = "saved" if step == saved else f"saved up to step {saved}"
        return f"at step {step} of {self.trainer.n_steps}, {kept if saved else 'nothing saved yet'}"

    def result(self) -> dict[str, Any]:
        """Summarise the training for `training.json`."""
        history = self.trainer.history
        speeds = [row["images_per_second"] for row in history if row["images_per_second"]]
        return {
            "epochs": self.job.settings.config.epochs,
            "steps": self.trainer.n_steps,
            "validation_accuracy": history[-1]["validation_accuracy"],
            "images_per_second": round(statistics.median(speeds or [0.0]), 1),
        }
