"""Train a model on a split: one-cycle schedule, random crops, checkpoints that resume exactly."""

import logging
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from music_genre import artifacts, augmentation, checkpoint, dataset, model, optimization
from music_genre.config import Progress, TrainConfig, silent
from music_genre.dataset import Images
from music_genre.errors import InputError, StoppedError

logger = logging.getLogger(__name__)

RECIPE = 1
"""Raise when the same split and settings would give other weights."""


class Trainer:
    """Everything that changes during a training, one step at a time."""

    def __init__(
        self, config: TrainConfig, train: Images, validation: Images, n_genres: int
    ) -> None:
        """Set up step 0; images lie on the device to train on."""
        self.config, self.images, self.validation = config, train, validation
        n_mels, device = train.pixels.shape[1], train.pixels.device
        self.network = model.build(
            config.model, n_genres, n_mels, config.crop_frames, config.seed
        ).to(device)
        self.optimizer = optimization.make_optimizer(self.network, config)
        self.criterion = optimization.make_criterion(config)
        n_crops = augmentation.crops_per_epoch(train, config.crop_frames)
        self.batch_size = min(config.batch_size, n_crops)
        self.steps_per_epoch = n_crops // self.batch_size
        self.n_steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.epoch_loss = torch.zeros((), device=device)
        self.history: list[dict[str, Any]] = []
        self._order_of: tuple[int, Tensor] = (-1, torch.empty(0))

    def train_step(self) -> None:
        """Do the next update step."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = optimization.learning_rate(
                self.step, self.n_steps, self.config.learning_rate
            )
        tracks = self._order(epoch)[place * self.batch_size :][: self.batch_size]
        tracks = tracks.to(self.images.pixels.device)
        crops = self._crops(tracks, augmentation.generator(self.config.seed, epoch, self.step))
        # Dropout draws from torch's own generator.
        torch.manual_seed(augmentation.random_seed(self.config.seed, epoch, self.step, 1))
        labels = self.images.labels[tracks]
        self.epoch_loss += optimization.update(
            self.network, self.optimizer, self.criterion, crops, labels
        )
        self.step += 1

    def _order(self, epoch: int) -> Tensor:
        if self._order_of[0] != epoch:
            source = augmentation.generator(self.config.seed, epoch)
            order = augmentation.epoch_order(self.images, self.config.crop_frames, source)
            self._order_of = epoch, order
        return self._order_of[1]

    def _crops(self, tracks: Tensor, source: torch.Generator) -> Tensor:
        crops = augmentation.random_crops(self.images, tracks, self.config.crop_frames, source)
        crops = augmentation.mask(crops, 2, self.config.frequency_mask, source)
        crops = augmentation.mask(crops, 3, self.config.time_mask, source)
        return crops.contiguous(memory_format=torch.channels_last)

    @property
    def epoch_is_over(self) -> bool:
        """Whether all steps of the epoch are done and its validation is not."""
        return self.step == (len(self.history) + 1) * self.steps_per_epoch

    def end_epoch(self, check: Callable[[], None]) -> dict[str, Any]:
        """Validate and append a row to the history; `check` may raise, leaving all as it was.

        Raises:
            InputError: the loss is no finite number any more.
        """
        train_loss = float(self.epoch_loss) / self.steps_per_epoch
        if not math.isfinite(train_loss):
            raise InputError(
                f"the loss is {train_loss} by step {self.step}: training diverged; begin another "
                f"run with a --learning-rate below {self.config.learning_rate}"
            )
        probabilities = model.track_probabilities(
            self.network, self.validation, self.config.crop_frames, check
        )
        labels = self.validation.labels.cpu()
        right = probabilities.argmax(dim=1) == labels
        row = {
            "epoch": len(self.history) + 1,
            "step": self.step,
            "train_loss": round(train_loss, 4),
            "validation_loss": round(float(F.nll_loss(probabilities.clamp(1e-9).log(), labels)), 4),
            "validation_accuracy": round(float(right.float().mean()), 4),
            "learning_rate": float(f"{self.optimizer.param_groups[0]['lr']:.3g}"),
        }
        self.history.append(row)
        self.epoch_loss.zero_()
        return row

    def state(self) -> dict[str, Any]:
        """Return all that a checkpoint holds."""
        return {
            "weights": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "epoch_loss": self.epoch_loss,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.network.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.epoch_loss = state["step"], state["epoch_loss"]
        self.history = state["history"]


def train(
    split_dir: Path,
    store: Path,
    config: TrainConfig,
    *,
    into: Path | None = None,
    device_name: str = "auto",
    checkpoint_seconds: float = 20.0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a model on a split, or go on where an earlier attempt ended.

    Args:
        split_dir: what `split` made.
        store: the artifact folder; the run gets a folder of its own in it.
        config: model, optimizer, loss, schedule, augmentation, seed.
        into: use this run folder instead.
        device_name: auto, cpu or cuda.
        checkpoint_seconds: longest time between checkpoints.
        progress: told (steps done, steps in all, an epoch's line or nothing).

    Returns:
        The result: run address, device, validation accuracy, speed.

    Raises:
        InputError: the run folder belongs to other settings, or the model cannot be built.
        StoppedError: SIGTERM or SIGINT came; the checkpoint holds all steps done.
    """
    split = dataset.read_split(split_dir)
    n_mels = split.features.n_mels if split.features else dataset.PICTURE_ROWS
    settings = checkpoint.RunSettings(
        config, split.genres, split.features, n_mels, split.key, RECIPE
    )
    run = into or store / "runs" / settings.key
    checkpoint.claim(run, settings, split_dir)
    finished = artifacts.read_json(run / "training.json")
    if finished is not None:
        return {"run": str(run), **finished, "reused": True}
    device = model.choose_device(device_name)
    images = {
        name: dataset.load_images(split.examples_in(name), split.images_dir, split.genres, n_mels)
        for name in ("train", "validation")
    }
    trainer = Trainer(
        config, images["train"].to(device), images["validation"].to(device), len(split.genres)
    )
    state = checkpoint.load(run, device)
    if state is not None:
        trainer.restore(state)
        logger.info("resuming at step %d of %d", trainer.step, trainer.n_steps)
    _loop(trainer, run, checkpoint_seconds, progress)
    speeds = [row["images_per_second"] for row in trainer.history]
    result = {
        "device": device.type,
        "device_name": model.device_name(device),
        "epochs": config.epochs,
        "steps": trainer.n_steps,
        "validation_accuracy": trainer.history[-1]["validation_accuracy"],
        "images_per_second": round(statistics.median(speeds), 1),
    }
    artifacts.write_json(run / "training.json", result)
    return {"run": str(run), **result, "reused": False}


def _loop(trainer: Trainer, run: Path, checkpoint_seconds: float, progress: Progress) -> None:
    """Take all steps left, saving in time."""
    with _signals() as arrived:

        def check() -> None:
            if arrived:
                checkpoint.save(run, trainer.state())
                raise StoppedError(
                    f"stopped by {arrived[0]} at step {trainer.step} of {trainer.n_steps}, saved; "
                    "run the same command again to go on"
                )

        saved = epoch_began = time.monotonic()
        n_images = 0
        while True:
            check()
            if trainer.epoch_is_over:
                seconds = time.monotonic() - epoch_began
                row = trainer.end_epoch(check)
                row["images_per_second"] = round(n_images / seconds, 1) if n_images else 0.0
                row["seconds"] = round(time.monotonic() - epoch_began, 2)
                artifacts.write_table(run / "history.csv", trainer.history, list(row))
                line = " ".join(f"{name}={value}" for name, value in row.items())
                progress(trainer.step, trainer.n_steps, line)
                epoch_began, n_images = time.monotonic(), 0
            if trainer.step == trainer.n_steps:
                checkpoint.save(run, trainer.state())
                return
            trainer.train_step()
            n_images += trainer.batch_size
            progress(trainer.step, trainer.n_steps)
            if time.monotonic() - saved >= checkpoint_seconds:
                checkpoint.save(run, trainer.state())
                saved = time.monotonic()


@contextmanager
def _signals() -> Iterator[list[str]]:
    """Collect the names of SIGTERM and SIGINT while steps are taken, instead of dying of them."""
    arrived: list[str] = []

    def collect(number: int, _frame: FrameType | None) -> None:
        arrived.append(signal.Signals(number).name)

    before = {number: signal.signal(number, collect) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
