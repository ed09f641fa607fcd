"""Take the steps of a training: on which device, with checkpoints in time, until a signal."""

import logging
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from music_genre.config import Machine
from music_genre.dataset import crops as tensors
from music_genre.dataset.split import Split
from music_genre.errors import StoppedError
from music_genre.model import checkpoint, device
from music_genre.model import network as model
from music_genre.progress import Progress
from music_genre.store import locks, records, signals, tables
from music_genre.store.runs import RunSettings
from music_genre.store.signals import GO_ON
from music_genre.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A training that is to be done here and now."""

    run: Path
    lock: locks.Lock
    """Of the run folder."""
    settings: RunSettings
    split: Split
    store: Path
    weights: Path | None
    machine: Machine
    progress: Progress


def train(job: Job) -> dict[str, Any]:
    """Train from the newest checkpoint, or from the start, to the end.

    Returns:
        What came of it, which is also in the run folder: device, steps, accuracy, speed.

    Raises:
        InputError: the model cannot be built, the GPU has too little memory, or training diverged.
        StoppedError: a signal came; the checkpoint holds all steps done.
        TemporaryError: another process has the GPU, or took the run folder over.
    """
    with device.held(job.machine.device, job.machine.gpu_locks) as chosen:
        trainer = _make_trainer(job, chosen)
        last = _Loop(job, trainer).finish()
    speeds = [row["images_per_second"] for row in trainer.history if row["images_per_second"]]
    result = {
        "device": chosen.type,
        "device_name": device.describe(chosen),
        "epochs": job.settings.config.epochs,
        "steps": trainer.n_steps,
        "validation_accuracy": trainer.history[-1]["validation_accuracy"],
        "images_per_second": round(statistics.median(speeds or [0.0]), 1),
        "checkpoint": last.name,
        "key": job.settings.key,
    }
    job.lock.check()
    records.write_json(job.run / "training.json", result)
    return result


def _make_trainer(job: Job, chosen: torch.device) -> Trainer:
    """Build the model, open the images and go back to where the run is."""
    config, split, n_mels = job.settings.config, job.split, job.settings.n_mels
    network = model.build(config.model, len(split.genres), n_mels, config.crop_frames, config.seed)
    if job.weights is not None:
        model.load_weights_file(network, job.weights)
    train, validation = (
        tensors.open_images(
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


class _Loop:
    """Takes the steps of a training, saving in time."""

    def __init__(self, job: Job, trainer: Trainer) -> None:
        self.job, self.trainer, self.progress = job, trainer, job.progress
        self.saved = self.epoch_began = time.monotonic()
        self.saved_step = trainer.step
        self.n_images = 0
        self.validation_seconds = 0.0

    def finish(self) -> Path:
        """Take all steps left; returns the last checkpoint."""
        trainer = self.trainer
        self._write_history()
        with signals.stops(self._save_for_end) as stop:
            while trainer.step < trainer.n_steps or trainer.epoch_is_over:
                if stop.serve():
                    saved = self._save_for_end()
                    raise StoppedError(f"stopped by {stop.name} {saved}; {GO_ON}", stop.name)
                self._advance()
            return self._save()

    def _advance(self) -> None:
        """Do what comes next: an epoch's end or a step, and a checkpoint where it is time."""
        trainer = self.trainer
        if trainer.epoch_is_over:
            if self._is_due(self.validation_seconds):
                self._save()
            self._end_epoch()
            return
        trainer.train_step()
        self.n_images += trainer.batch_size
        self.progress(trainer.step, trainer.n_steps)
        if self._is_due():
            self._save()

    def _is_due(self, later: float = 0.0) -> bool:
        """Tell whether a checkpoint is due, now or in so many seconds, and would hold more."""
        age = time.monotonic() + later - self.saved
        unsaved = self.trainer.step > self.saved_step
        return unsaved and age >= self.job.machine.checkpoint_seconds

    def _end_epoch(self) -> None:
        trainer, seconds = self.trainer, time.monotonic() - self.epoch_began
        began = time.monotonic()
        row = trainer.end_epoch()
        self.validation_seconds = time.monotonic() - began
        row["images_per_second"] = round(self.n_images / seconds, 1) if self.n_images else 0.0
        row["seconds"] = round(time.monotonic() - self.epoch_began, 2)
        trainer.add_row(row)
        self._write_history()
        line = " ".join(f"{name}={value}" for name, value in row.items())
        self.progress(trainer.step, trainer.n_steps, line)
        self.epoch_began, self.n_images = time.monotonic(), 0

    def _write_history(self) -> None:
        """Write the history for people; the checkpoints have their own."""
        history = self.trainer.history
        if history:
            self.job.lock.check()
            tables.write_table(self.job.run / "history.csv", history, list(history[0]))

    def _save(self) -> Path:
        with self.trainer.changing:
            self.job.lock.check()
            settings = self.job.settings
            identity = {"run": settings.key, "settings": asdict(settings)}
            path = checkpoint.save(self.job.run, {**identity, **self.trainer.state()})
            self.saved_step = self.trainer.step
        self.saved = time.monotonic()
        return path

    def _save_for_end(self) -> str:
        """Save unless that is done already, and say what is saved."""
        with self.trainer.changing:
            if self.trainer.step > self.saved_step or not checkpoint.find(self.job.run):
                self._save()
            return f"at step {self.trainer.step} of {self.trainer.n_steps}, saved"
