"""Random crops and SpecAugment masks, drawn from generators keyed by seed, epoch and step."""

import hashlib

import torch
from torch import Tensor

from music_genre.dataset import Images


def random_seed(*key: int) -> int:
    """Turn (seed, epoch, step) into the seed of a generator.

    Because every step has its own, a resumed training draws what an uninterrupted one draws
    and no generator state is saved.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes 63 bits


def generator(*key: int) -> torch.Generator:
    """Make the generator of (seed, epoch, step); on the CPU, so that devices draw alike."""
    return torch.Generator().manual_seed(random_seed(*key))


def crops_per_epoch(images: Images, crop_frames: int) -> int:
    """Count an epoch's crops: each track as often as crops fit into it, at least once."""
    return int(_repeats(images, crop_frames).sum())


def epoch_order(images: Images, crop_frames: int, source: torch.Generator) -> Tensor:
    """Shuffle an epoch's track numbers, (crops_per_epoch,) int64 on the CPU."""
    repeats = _repeats(images, crop_frames)
    tracks = torch.arange(len(repeats)).repeat_interleave(repeats)
    return tracks[torch.randperm(len(tracks), generator=source)]


def _repeats(images: Images, crop_frames: int) -> Tensor:
    return (images.lengths.cpu() // crop_frames).clamp(min=1)


def random_crops(
    images: Images, tracks: Tensor, crop_frames: int, source: torch.Generator
) -> Tensor:
    """Cut one crop at a random place of each track.

    Args:
        images: the tracks.
        tracks: (batch,) int64 track numbers, on the images' device.
        crop_frames: frames of a crop.
        source: the step's generator.

    Returns:
        (batch, 1, n_mels, crop_frames) float32.
    """
    places = torch.rand(len(tracks), generator=source).to(tracks.device)
    room = (images.lengths[tracks] - crop_frames + 1).clamp(min=1)
    return images.crops(tracks, (places * room).long(), crop_frames)


def mask(crops: Tensor, axis: int, widest: int, source: torch.Generator) -> Tensor:
    """Hide one random stretch of each crop, of random width up to `widest`, behind its mean.

    Args:
        crops: (batch, 1, n_mels, crop_frames) float32; overwritten.
        axis: 2 hides mel bands, 3 hides frames.
        widest: the largest number of rows or columns to hide; 0 hides none.
        source: the step's generator.

    Source: SpecAugment, Park et al. 2019.
    """
    draws = torch.rand(2, len(crops), generator=source).to(crops.device)
    size = crops.shape[axis]
    width = (draws[0] * (min(widest, size - 1) + 1)).long()
    first = (draws[1] * (size - width + 1)).long()
    position = torch.arange(size, device=crops.device)
    hidden = (position >= first[:, None]) & (position < (first + width)[:, None])
    shape = [len(crops), 1, 1, 1]
    shape[axis] = size
    mean = crops.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(hidden.view(shape), mean, crops)
