"""Torchvision's models, changed to take one grey channel."""

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from music_genre.config import check_model
from music_genre.errors import InputError
from music_genre.model import checkpoint

logger = logging.getLogger(__name__)

LEAST_BFLOAT16_FRAMES: Final = 64
"""Minimum frames of a crop for bfloat16 on CPUs. With fewer frames, a strided convolution can get
an input that is no wider than the stride. oneDNN's AMX kernels then read uninitialised memory and
return NaN (found with torch 2.15, see tests/ml/test_model.py)."""


def autocast(device: torch.device, network: nn.Module, crop_frames: int) -> torch.autocast:
    """Return a context in which torch computes in bfloat16 if `computes_in_bfloat16` says so."""
    pays = computes_in_bfloat16(device.type, network, crop_frames)
    return torch.autocast(device.type, torch.bfloat16, enabled=pays)


def computes_in_bfloat16(device_type: str, network: nn.Module, crop_frames: int) -> bool:
    """Tell whether to compute in bfloat16.

    GPUs always compute in bfloat16. CPUs do so if they multiply bfloat16 natively, except for
    models with grouped (such as depthwise) convolutions and for crops of fewer than
    `LEAST_BFLOAT16_FRAMES` frames. Speed of training in bfloat16 compared with float32, measured on
    two cores with AVX-512 BF16: resnet18 2.1 times as fast, squeezenet1_1 1.6 times as fast,
    shufflenet_v2_x0_5 equally fast, efficientnet_b0 1.5 times slower, mobilenet_v3_small 2.3 times
    slower. On a CPU that emulates bfloat16 (AVX2), resnet18 is 15 times slower than in float32.
    """
    if device_type == "cuda":
        return True
    if crop_frames < LEAST_BFLOAT16_FRAMES:
        return False
    able = torch.cpu.get_capabilities()
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules())
    return not depthwise and any(able.get(name) for name in ("amx_bf16", "avx512_bf16"))


def build(name: str, n_genres: int, n_mels: int, crop_frames: int, seed: int) -> nn.Module:
    """Build a torchvision classification model for one grey channel, with random weights.

    The model maps (batch, 1, n_mels, crop_frames) float32 to (batch, n_genres) logits.

    Raises:
        InputError: there is no such model, or the model cannot take crops of this size.
    """
    check_model(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            size = _input_size(name, n_mels, crop_frames)
            network: nn.Module = torchvision.models.get_model(
                name, weights=None, num_classes=n_genres, **_options(name, size)
            )
            _make_grey(network)
            if size != (n_mels, crop_frames):
                network.register_forward_pre_hook(partial(_resize, size))
            with torch.inference_mode():
                network.eval()(torch.zeros(1, 1, n_mels, crop_frames))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"model {name}: cannot take crops of {n_mels} x {crop_frames} ({reason}); "
                f"try --crop-frames {n_mels}"
            ) from None
    return network.to(memory_format=torch.channels_last)


def _input_size(name: str, n_mels: int, crop_frames: int) -> tuple[int, int]:
    """Return a model's input size: the crops' size, or the next larger size that it accepts."""
    if name.startswith("vit_"):  # needs squares; the side is a multiple of the patch size
        patch = int(name.rpartition("_")[2])
        side = math.ceil(max(n_mels, crop_frames) / patch) * patch
        return side, side
    if name.startswith("maxvit"):  # needs multiples of 224 = downscaling 32 * window 7
        return math.ceil(n_mels / 224) * 224, math.ceil(crop_frames / 224) * 224
    return n_mels, crop_frames


def _resize(size: tuple[int, int], _network: nn.Module, crops: tuple[Tensor]) -> Tensor:
    return F.interpolate(crops[0], size, mode="bilinear")


def _options(name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return the extra constructor arguments that some families of models need."""
    if name.startswith("vit_"):
        return {"image_size": size[0]}
    if name.startswith("maxvit"):
        return {"input_size": size}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}


def _make_grey(network: nn.Module) -> None:
    """Replace the first convolution on three colours with a convolution on one grey channel."""
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
    raise ValueError("it has no convolution with three input channels")


def load_weights_file(network: nn.Module, path: Path) -> None:
    """Load initial weights from a file, such as torchvision's trained weights or a checkpoint.

    If the file's first convolution takes three colours, its weights are summed over the colours.
    For grey pictures, the sums give the same output as the weights of the three colours. If the
    file and the network have different numbers of classes, the network's classifier layer keeps its
    random weights.

    Raises:
        InputError: the file contains no weights, or the weights of another model.
    """
    found = _read_weights(path)
    own = network.state_dict()
    for name, value in found.items():
        wanted = own.get(name)
        if wanted is not None and value.ndim == 4 and value.shape[1] == 3 and wanted.shape[1] == 1:
            found[name] = value.sum(dim=1, keepdim=True)
    # Weights of the same model can lack batch counters (num_batches_tracked), but nothing else.
    missing = [name for name in own if name not in found and not name.endswith("batches_tracked")]
    other = [name for name in own if name in found and found[name].shape != own[name].shape]
    strange = [name for name in other if own[name].shape[:1] != list(own.values())[-1].shape[:1]]
    if missing or strange:
        raise InputError(
            f"{path}: weights of another model ({len(missing + strange)} tensors are missing or "
            f"have another shape, the first: {(missing + strange)[0]}); give weights of the same "
            "--model"
        )
    logger.info(
        "initial weights are from %s; tensors left random: %s",
        path.name,
        ", ".join(other) or "none",
    )
    own.update({name: found[name] for name in own if name in found and name not in other})
    network.load_state_dict(own)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict: the whole contents of a file, or an entry under one of the usual names."""
    try:
        contents = checkpoint.read_tensors(path)
    except ValueError as error:
        raise InputError(f"{path}: not a file of weights ({error}); give a state dict") from None
    for name in ("averaged", "weights", "state_dict", "model"):
        if isinstance(contents, dict) and isinstance(contents.get(name), dict):
            contents = contents[name]
            break
    if not isinstance(contents, dict) or not all(isinstance(v, Tensor) for v in contents.values()):
        raise InputError(f"{path}: contains no named tensors; give a state dict")
    return {name.removeprefix("module."): value for name, value in contents.items()}
