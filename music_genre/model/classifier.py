"""A trained model: turns images into genre probabilities."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from music_genre.config import FeatureConfig
from music_genre.dataset.crops import Images, normalise, stack_images
from music_genre.errors import InputError
from music_genre.model import checkpoint
from music_genre.model.network import autocast, build
from music_genre.store import runs

BATCH: Final = 64
"""Crops per forward pass when a model is validated during its training."""
EXACT_BATCH: Final = 16
"""Crops per forward pass of a trained model; the last batch is padded. oneDNN chooses
a convolution's algorithm by the batch size, and the algorithms differ in rounding: a crop's results
in batches of 11 and of 16 crops differ by 2e-6 (resnet18, torch 2.15). With one fixed batch size, a
crop's result does not depend on the other crops."""
CROPS_AT_ONCE: Final = 256
"""Images are collected until they have at least this many crops in total, then classified."""


@dataclass(frozen=True)
class Classifier:
    """The trained model of a finished run, or a published model."""

    network: nn.Module
    """Maps the output of `normalise`, (batch, 1, n_mels, crop_frames) float32, to logits."""
    genres: list[str]
    features: FeatureConfig | None
    """How the model's images are drawn; None if another program drew the training images."""
    n_mels: int
    """Rows of an image."""
    crop_frames: int

    @classmethod
    def load(cls, run: Path, device: torch.device) -> "Classifier":
        """Load the model of a run folder; a published model's folder is also a run folder.

        Raises:
            InputError: the run has not finished, or its last checkpoint is gone or damaged, or that
                checkpoint belongs to another run.
        """
        settings, _ = runs.read_settings(run)
        path, state = checkpoint.load_last(run)
        _check_genres(path, state, settings)
        checkpoint.check_run(path, state, runs.read_key(run))
        config, n_mels = settings.config, settings.n_mels
        network = build(config.model, len(settings.genres), n_mels, config.crop_frames, config.seed)
        network.load_state_dict(checkpoint.shipped(state))
        return cls(
            network.to(device), settings.genres, settings.features, n_mels, config.crop_frames
        )

    def probabilities(self, images: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Average the genre probabilities of the crops that cover each image.

        Crops of several images go through the network together, in float32.

        Args:
            images: (n_mels, n_frames) uint8 each.

        Yields:
            (n_genres,) float32 for each image, in order; their sum is 1.
        """
        device = next(self.network.parameters()).device
        for some in _together(images, self.crop_frames):
            stacked = stack_images(some, [0] * len(some)).to(device)
            found = track_probabilities(self.network, stacked, self.crop_frames, exact=True)
            yield from found.numpy()


def _check_genres(path: Path, state: dict[str, Any], settings: runs.RunSettings) -> None:
    learned = state["settings"]["genres"]
    if learned != settings.genres:
        raise InputError(
            f"{path}: trained on the genres {', '.join(learned)}, but settings.json names "
            f"{', '.join(settings.genres)}; put the settings.json of the checkpoint's run "
            "beside the checkpoint"
        )


def _together(
    images: Iterable[NDArray[np.uint8]], crop_frames: int
) -> Iterator[list[NDArray[np.uint8]]]:
    """Put images into lists; each list except the last has at least `CROPS_AT_ONCE` crops."""
    some: list[NDArray[np.uint8]] = []
    n_crops = 0
    for image in images:
        some.append(image)
        n_crops += -(-image.shape[1] // crop_frames)
        if n_crops >= CROPS_AT_ONCE:
            yield some
            some, n_crops = [], 0
    if some:
        yield some


def track_probabilities(
    network: nn.Module,
    images: Images,
    crop_frames: int,
    *,
    exact: bool,
    after_batch: Callable[[], None] = lambda: None,
) -> Tensor:
    """Average the genre probabilities of evenly spaced crops that cover each track.

    Args:
        network: maps crops to logits; it is switched to eval mode and not switched back.
        images: the tracks' images; crops read from them must be on the network's device.
        crop_frames: frames of a crop.
        exact: compute in float32, and make a track's probabilities independent of the other
            tracks; if False, compute in the precision that training uses.
        after_batch: called after each forward pass.

    Returns:
        (n_tracks, n_genres) float32 on the CPU; rows sum to 1.
    """
    tracks, starts = even_crops(images.lengths, crop_frames)
    network.eval()
    parts = []
    with (
        torch.inference_mode(),
        contextlib.nullcontext() if exact else autocast(images.device, network, crop_frames),
    ):
        size = EXACT_BATCH if exact else BATCH
        for first in range(0, len(tracks), size):
            batch = slice(first, first + size)
            crops = normalise(images.read(tracks[batch], starts[batch], crop_frames))
            logits = network(_filled(crops) if exact else crops)[: len(crops)]
            parts.append(logits.float().softmax(dim=1))
            after_batch()
    probabilities = torch.cat(parts).cpu()
    summed = torch.zeros(len(images.lengths), probabilities.shape[1])
    summed.index_add_(0, tracks, probabilities)
    return summed / torch.bincount(tracks, minlength=len(summed))[:, None]


def _filled(crops: Tensor) -> Tensor:
    """Pad a batch to `EXACT_BATCH` crops."""
    return torch.cat([crops, crops.new_zeros(EXACT_BATCH - len(crops), *crops.shape[1:])])


def even_crops(lengths: Tensor, crop_frames: int) -> tuple[Tensor, Tensor]:
    """Place the fewest crops that cover each track, evenly spaced.

    Args:
        lengths: (n_tracks,) int64 frames.
        crop_frames: frames of a crop.

    Returns:
        Track number and first frame of each crop, both (n_crops,) int64.
    """
    counts = (lengths + crop_frames - 1) // crop_frames
    tracks = torch.arange(len(lengths)).repeat_interleave(counts)
    rank = torch.arange(len(tracks)) - (counts.cumsum(0) - counts)[tracks]
    room = (lengths - crop_frames).clamp(min=0)[tracks]
    return tracks, rank * room // (counts[tracks] - 1).clamp(min=1)
