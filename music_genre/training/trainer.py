"""The state and the steps of a training; interrupting a training does not change its result."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from music_genre.config import TrainConfig
from music_genre.dataset.crops import Images, normalise
from music_genre.errors import InputError
from music_genre.model.classifier import track_probabilities
from music_genre.training import augmentation, optimization


class Batch(NamedTuple):
    """The data of one step, before augmentation."""

    crops: Callable[[], Tensor]
    """Waits for the crops and returns them: (batch, crop_frames, n_mels) uint8, on the device."""
    labels: Tensor
    """(batch,) int64, on the device."""
    source: torch.Generator
    """The step's generator; the crops' starts have already been drawn from it."""


class Trainer:
    """Holds the state of a training, and advances it by one step at a time."""

    def __init__(
        self, config: TrainConfig, train: Images, validation: Images, network: nn.Module
    ) -> None:
        """Prepare for step 0; the images' crops and the network must be on the same device."""
        self.config, self.images, self.validation, self.network = config, train, validation, network
        self.optimizer = optimization.make_optimizer(network, config)
        self.criterion = optimization.make_criterion(config)
        self.average = optimization.make_average(network, config.ema_decay)
        n_crops = augmentation.crops_per_epoch(train.lengths, config.crop_frames)
        self.batch_size = min(config.batch_size, n_crops)
        self.steps_per_epoch = n_crops // self.batch_size
        self.n_steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.epoch_loss = torch.zeros((), device=train.device)
        self.history: list[dict[str, Any]] = []
        self._order_of: tuple[int, Tensor] = (-1, torch.empty(0))
        self._ahead: dict[int, Batch] = {}

    def train_step(self) -> None:
        """Do the next update step."""
        epoch = self.step // self.steps_per_epoch
        rate = optimization.learning_rate(self.step, self.n_steps, self.config.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self._batch()
        crops = self._augment(normalise(batch.crops()), batch.source)
        key = (self.config.seed, epoch, self.step)
        crops, mixed = augmentation.mix(crops, self.config.mixup, *key, 2)
        # Dropout draws from torch's global generator, so seed that generator for this step.
        torch.manual_seed(augmentation.random_seed(*key, 1))
        self.epoch_loss += optimization.add_gradients(
            self.network, self.criterion, crops, batch.labels, mixed
        )
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.step += 1

    def _batch(self) -> Batch:
        """Return the next step's batch, and start reading the batch of the following step."""
        batch = self._ahead.get(self.step) or self._ask(self.step)
        following = self.step + 1
        self._ahead = {following: self._ask(following)} if following < self.n_steps else {}
        return batch

    def _ask(self, step: int) -> Batch:
        epoch, place = divmod(step, self.steps_per_epoch)
        tracks = self._order(epoch)[place * self.batch_size :][: self.batch_size]
        source = augmentation.generator(self.config.seed, epoch, step)
        crop_frames = self.config.crop_frames
        starts = augmentation.random_starts(self.images.lengths[tracks], crop_frames, source)
        crops = self.images.ask(tracks, starts, crop_frames)
        labels = self.images.labels[tracks].to(self.images.device, non_blocking=True)
        return Batch(crops, labels, source)

    def _order(self, epoch: int) -> Tensor:
        if self._order_of[0] != epoch:
            source = augmentation.generator(self.config.seed, epoch)
            order = augmentation.epoch_order(self.images.lengths, self.config.crop_frames, source)
            self._order_of = epoch, order
        return self._order_of[1]

    def _augment(self, crops: Tensor, source: torch.Generator) -> Tensor:
        crops = augmentation.mask(crops, 2, self.config.frequency_mask, source)
        crops = augmentation.mask(crops, 3, self.config.time_mask, source)
        return crops.contiguous(memory_format=torch.channels_last)

    @property
    def epoch_is_over(self) -> bool:
        """Whether all steps of the current epoch are done, but its validation is not."""
        return self.step == (len(self.history) + 1) * self.steps_per_epoch

    @property
    def is_over(self) -> bool:
        """Whether all steps are done and all epochs are validated."""
        return self.step == self.n_steps and not self.epoch_is_over

    def end_epoch(self, after_batch: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Validate the network that `finalise` returns, and begin the next epoch.

        Args:
            after_batch: called after each batch of validation; if it raises, the epoch counts as
                not validated.

        Returns:
            The epoch's row, which is also appended to `history`.

        Raises:
            InputError: the loss is no longer finite.
        """
        probabilities = track_probabilities(
            self.finalise(),
            self.validation,
            self.config.crop_frames,
            exact=False,
            after_batch=after_batch,
        )
        labels = self.validation.labels
        right = probabilities.argmax(dim=1) == labels
        train_loss = float(self.epoch_loss) / self.steps_per_epoch
        validation_loss = float(F.nll_loss(probabilities.clamp(1e-9).log(), labels))
        # Check the validation loss only after the last step. Before that, the statistics of batch
        # normalisation can be unsettled, which can make the validation loss NaN.
        self._check_finite(train_loss if self.step < self.n_steps else train_loss + validation_loss)
        row = {
            "epoch": len(self.history) + 1,
            "step": self.step,
            "train_loss": round(train_loss, 4),
            "validation_loss": round(validation_loss, 4),
            "validation_accuracy": round(float(right.float().mean()), 4),
            "learning_rate": float(f"{self.optimizer.param_groups[0]['lr']:.3g}"),
        }
        self.history.append(row)
        self.epoch_loss.zero_()
        return row

    def finalise(self) -> nn.Module:
        """Return the trained network: its averaged copy if the run averages the weights."""
        return self.network if self.average is None else self.average.module

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {self.step}: training diverged; start another run "
                f"with a --learning-rate below {self.config.learning_rate}"
            )

    def state(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint.

        The learning-rate schedule and the random generators are not part of the state, because both
        can be computed from the settings and the step.
        """
        average = self.average
        return {
            "weights": self.network.state_dict(),
            "averaged": None if average is None else average.module.state_dict(),
            "n_averaged": 0 if average is None else int(average.n_averaged),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "epoch_loss": self.epoch_loss,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state that a checkpoint contains; the checkpoint's tensors are on the CPU."""
        self.network.load_state_dict(state["weights"])
        if self.average is not None:
            self.average.module.load_state_dict(state["averaged"])
            self.average.n_averaged.fill_(state["n_averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.epoch_loss.copy_(state["epoch_loss"])
        self.history = state["history"]
