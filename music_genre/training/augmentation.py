"""Random crops, SpecAugment and mixup, drawn from generators keyed by seed, epoch and step."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def random_seed(*key: int) -> int:
    """Turn a key, such as (seed, epoch, step), into the seed of a generator.

    Every step has its own seed. A resumed training therefore draws the same numbers as an
    uninterrupted one, and no generator state has to be saved.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # 63 bits, which torch accepts as a seed


def generator(*key: int) -> torch.Generator:
    """Make the generator of a key, on the CPU, so that all devices get the same random numbers."""
    return torch.Generator().manual_seed(random_seed(*key))


def crops_per_epoch(lengths: Tensor, crop_frames: int) -> int:
    """Count an epoch's crops: for each track, the crops that fit side by side, but at least one.

    Args:
        lengths: (n_tracks,) int64 frames.
        crop_frames: frames of a crop.
    """
    return int(_repeats(lengths, crop_frames).sum())


def epoch_order(lengths: Tensor, crop_frames: int, source: torch.Generator) -> Tensor:
    """Return the track number of each crop of an epoch, in random order.

    Args:
        lengths: (n_tracks,) int64 frames.
        crop_frames: frames of a crop.
        source: the epoch's generator.

    Returns:
        (crops_per_epoch,) int64.
    """
    repeats = _repeats(lengths, crop_frames)
    tracks = torch.arange(len(repeats)).repeat_interleave(repeats)
    return tracks[torch.randperm(len(tracks), generator=source)]


def _repeats(lengths: Tensor, crop_frames: int) -> Tensor:
    return (lengths // crop_frames).clamp(min=1)


def random_starts(lengths: Tensor, crop_frames: int, source: torch.Generator) -> Tensor:
    """Draw each crop's first frame within its track.

    Args:
        lengths: (batch,) int64 frames of each crop's track.
        crop_frames: frames of a crop.
        source: the step's generator.

    Returns:
        (batch,) int64 frames; 0 where the track is no longer than a crop.
    """
    room = (lengths - crop_frames + 1).clamp(min=1)
    return (torch.rand(len(lengths), generator=source) * room).long()


def mask(crops: Tensor, axis: int, widest: int, source: torch.Generator) -> Tensor:
    """Replace a random stretch of each crop, up to `widest` wide, with the crop's mean.

    Args:
        crops: (batch, 1, n_mels, crop_frames) float32.
        axis: 2 hides mel bands, 3 hides frames.
        widest: the largest number of rows or columns to hide; 0 hides none.
        source: the step's generator.

    Returns:
        The masked crops, of the same shape.

    Source: SpecAugment, Park et al. 2019.
    """
    draws = torch.rand(2, len(crops), generator=source).to(crops.device, non_blocking=True)
    size = crops.shape[axis]
    width = (draws[0] * (min(widest, size - 1) + 1)).long()
    first = (draws[1] * (size - width + 1)).long()
    position = torch.arange(size, device=crops.device)
    hidden = (position >= first[:, None]) & (position < (first + width)[:, None])
    shape = [len(crops), 1, 1, 1]
    shape[axis] = size
    mean = crops.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(hidden.view(shape), mean, crops)


@dataclass(frozen=True)
class Mixed:
    """How the crops of a batch were mixed."""

    share: float
    """Weight of each crop and of its label, in [0, 1]; the partner's weight is 1 - share."""
    partners: Tensor
    """(batch,) int64: index, in the batch, of each crop's partner."""


def mix(crops: Tensor, alpha: float, *key: int) -> tuple[Tensor, Mixed | None]:
    """Mix each crop with another crop of its batch.

    Args:
        crops: (batch, 1, n_mels, crop_frames) float32.
        alpha: parameter of the Beta distribution that the share is drawn from; 0 mixes nothing.
        key: the key for `random_seed`.

    Returns:
        The mixed crops, and how they were mixed (None if `alpha` is 0).

    Source: mixup, Zhang et al. 2018, with one share per batch as in the authors' own code.
    """
    if not alpha:
        return crops, None
    random = np.random.default_rng(random_seed(*key))
    share = float(random.beta(alpha, alpha))
    partners = torch.from_numpy(random.permutation(len(crops))).to(crops.device)
    return torch.lerp(crops[partners], crops, share), Mixed(share, partners)
