"""Torchvision's models on one grey channel, their device, and the probabilities of tracks."""

import difflib
import logging
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from music_genre.config import usable_cores
from music_genre.dataset import Images
from music_genre.errors import InputError

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 64
"""Crops in one forward pass; small enough to notice a signal within 3 s on two cores."""


def choose_device(name: str) -> torch.device:
    """Pick the device for auto, cpu or cuda, say which, and use all cores this process may.

    Raises:
        InputError: cuda is asked for and there is none.
    """
    n_threads = usable_cores()
    torch.set_num_threads(n_threads)
    visible = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not visible:
        raise InputError("--device cuda: no NVIDIA GPU is visible; use --device auto or cpu")
    if visible:
        # Repeatable algorithms, so that resumed equals uninterrupted.
        torch.backends.cudnn.deterministic = True
        logger.info("computing on %s", torch.cuda.get_device_name())
        return torch.device("cuda")
    reason = "as asked" if name == "cpu" else "no NVIDIA GPU is visible"
    logger.info("%s: computing on the CPU (%d threads)", reason, n_threads)
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Name the hardware."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def autocast(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 where it pays: on GPUs, and on CPUs with AMX.

    Without AMX it is emulated, 15 times slower than float32 (measured, AVX2).
    """
    pays = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return torch.autocast(device.type, torch.bfloat16, enabled=pays)


def build(name: str, n_genres: int, n_mels: int, crop_frames: int, seed: int) -> nn.Module:
    """Build a torchvision classification model with random weights for one grey channel.

    The model maps (batch, 1, n_mels, crop_frames) float32 to (batch, n_genres) logits.

    Raises:
        InputError: there is no such model, or it cannot take crops of this size.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=4, cutoff=0.4)) or "resnet18"
        raise InputError(f"--model {name}: torchvision has no such model; near names: {near}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network: nn.Module = torchvision.models.get_model(
                name, weights=None, num_classes=n_genres, **_size_options(name, n_mels, crop_frames)
            )
            _make_grey(network)
            with torch.inference_mode():
                network.eval()(torch.zeros(1, 1, n_mels, crop_frames))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"--model {name}: cannot take crops of {n_mels} x {crop_frames} ({reason}); "
                f"try --crop-frames {n_mels}"
            ) from None
    return network.to(memory_format=torch.channels_last)


def _size_options(name: str, n_mels: int, crop_frames: int) -> dict[str, Any]:
    """Return what some families must be told at construction."""
    if name.startswith("vit_"):
        if n_mels != crop_frames:
            raise ValueError("it takes squares only")
        return {"image_size": n_mels}
    if name.startswith("maxvit"):
        return {"input_size": (n_mels, crop_frames)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}


def _make_grey(network: nn.Module) -> None:
    """Replace the first convolution, which takes three colours, by one that takes grey."""
    for path, old in network.named_modules():
        if isinstance(old, nn.Conv2d) and old.in_channels == 3:
            new = nn.Conv2d(
                1,
                old.out_channels,
                old.kernel_size,  # type: ignore[arg-type]
                old.stride,  # type: ignore[arg-type]
                old.padding,  # type: ignore[arg-type]
                bias=old.bias is not None,
            )
            parent, _, attribute = path.rpartition(".")
            setattr(network.get_submodule(parent), attribute, new)
            return
    raise ValueError("it has no convolution of three colours to begin with")


def track_probabilities(
    network: nn.Module,
    images: Images,
    crop_frames: int,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Average the probabilities of crops that cover each track evenly.

    Args:
        network: maps crops to logits; left in eval mode.
        images: the tracks, on the network's device.
        crop_frames: frames of a crop.
        check: called before each batch; may raise to end early.

    Returns:
        (n_tracks, n_genres) float32 on the CPU; rows sum to 1.
    """
    tracks, starts = even_crops(images.lengths.cpu(), crop_frames)
    device = images.pixels.device
    network.eval()
    parts = []
    with torch.inference_mode(), autocast(device):
        for first in range(0, len(tracks), EVALUATION_BATCH):
            batch = slice(first, first + EVALUATION_BATCH)
            check()
            crops = images.crops(tracks[batch].to(device), starts[batch].to(device), crop_frames)
            parts.append(network(crops).float().softmax(dim=1))
    probabilities = torch.cat(parts).cpu()
    summed = torch.zeros(len(images.lengths), probabilities.shape[1])
    summed.index_add_(0, tracks, probabilities)
    return summed / torch.bincount(tracks, minlength=len(summed))[:, None]


def even_crops(lengths: Tensor, crop_frames: int) -> tuple[Tensor, Tensor]:
    """Place crops evenly, as few as cover each track.

    Returns:
        (tracks, starts), each (n_crops,) int64.
    """
    counts = (lengths + crop_frames - 1) // crop_frames
    tracks = torch.arange(len(lengths)).repeat_interleave(counts)
    rank = torch.arange(len(tracks)) - (counts.cumsum(0) - counts)[tracks]
    room = (lengths - crop_frames).clamp(min=0)[tracks]
    return tracks, rank * room // (counts[tracks] - 1).clamp(min=1)
