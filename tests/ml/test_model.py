"""Torchvision's models on grey crops, and tracks' probabilities."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from music_genre.config import known_models
from music_genre.dataset import crops as tensors
from music_genre.errors import InputError
from music_genre.model import device
from music_genre.model import network as model
from music_genre.model.classifier import even_crops, track_probabilities


def test_the_known_names_are_torchvisions() -> None:
    assert list(known_models()) == torchvision.models.list_models(module=torchvision.models)


@pytest.mark.parametrize(
    "name", ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet", "vit_b_16", "swin_t"]
)
def test_models_take_grey_crops(name: str) -> None:
    network = model.build(name, n_genres=7, n_mels=128, crop_frames=128, seed=0)
    assert network(torch.randn(2, 1, 128, 128)).shape == (2, 7)


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (
        torch.cat([p.flatten() for p in model.build("squeezenet1_1", 3, 128, 64, s).parameters()])
        for s in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_model_is_refused_with_near_names() -> None:
    with pytest.raises(InputError, match=r"model resnet17: .*similar names: .*resnet1"):
        model.build("resnet17", 7, 128, 128, 0)


def test_a_model_that_cannot_take_the_crop_says_so() -> None:
    with pytest.raises(InputError, match="model alexnet: cannot take crops of 128 x 8"):
        model.build("alexnet", 7, 128, 8, 0)


@pytest.mark.parametrize(
    ("name", "crop_frames", "size"),
    [
        ("vit_b_16", 100, (128, 128)),
        ("vit_h_14", 128, (140, 140)),
        ("maxvit_t", 128, (224, 224)),
        ("maxvit_t", 256, (224, 448)),
        ("resnet18", 100, (128, 100)),
    ],
)
def test_a_model_of_few_sizes_sees_crops_of_the_next(
    name: str, crop_frames: int, size: tuple[int, int]
) -> None:
    assert model._input_size(name, 128, crop_frames) == size


@pytest.mark.parametrize(("name", "crop_frames"), [("vit_b_16", 100), ("maxvit_t", 128)])
def test_a_resized_crop_trains_and_its_weights_keep_their_names(
    name: str, crop_frames: int
) -> None:
    network = model.build(name, n_genres=3, n_mels=128, crop_frames=crop_frames, seed=0)
    network(torch.randn(2, 1, 128, crop_frames)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    published = torchvision.models.get_model(name, weights=None).state_dict()
    assert network.state_dict().keys() == published.keys()


def test_even_crops_cover_every_frame_of_every_track() -> None:
    lengths = torch.tensor([100, 30, 31, 5, 60])
    tracks, starts = even_crops(lengths, 30)
    assert torch.bincount(tracks).tolist() == [4, 1, 2, 1, 2]
    for track, length in enumerate(lengths.tolist()):
        own = starts[tracks == track].tolist()
        covered = {frame for start in own for frame in range(start, min(start + 30, length))}
        assert covered == set(range(length))
        assert max(own) + 30 <= max(length, 30)


def test_a_track_gets_the_mean_of_its_crops_probabilities() -> None:
    class Brightness(nn.Module):
        def forward(self, crops: torch.Tensor) -> torch.Tensor:
            level = crops.mean(dim=(1, 2, 3))
            return torch.stack([level, torch.zeros_like(level)], dim=1)

    dark, bright = np.zeros((8, 10), np.uint8), np.full((8, 10), 255, np.uint8)
    images = tensors.stack_images([np.hstack([dark, bright]), bright], [0, 1])
    probabilities = track_probabilities(Brightness(), images, 10, exact=True)
    low, high = (1 / (1 + np.exp(-level)) for level in (-2.0, 2.0))
    np.testing.assert_allclose(probabilities[:, 0], [(low + high) / 2, high], rtol=1e-5)
    np.testing.assert_allclose(probabilities.sum(dim=1), 1, rtol=1e-5)


def grey(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        n: v.sum(dim=1, keepdim=True) if v.ndim == 4 and v.shape[1] == 3 else v
        for n, v in weights.items()
    }


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("wrapped", ["", "model"])
def test_torchvisions_weights_are_taken_but_for_colour_and_classes(
    tmp_path: Path, name: str, wrapped: str
) -> None:
    trained = torchvision.models.get_model(name, weights=None, num_classes=1000).state_dict()
    torch.save({wrapped: trained} if wrapped else trained, tmp_path / "w.pth")
    network = model.build(name, 7, 128, 128, seed=0)
    random = {key: value.clone() for key, value in network.state_dict().items()}
    model.load_weights_file(network, tmp_path / "w.pth")
    expected, kept = grey(trained), []
    for key, value in network.state_dict().items():
        if value.shape == expected[key].shape:
            assert torch.equal(value, expected[key]), key
        else:
            assert torch.equal(value, random[key]), key
            kept.append(value.shape[0])
    assert kept == [7, 7]  # weight and bias of the classifier


def test_a_runs_own_checkpoint_is_taken_whole(tmp_path: Path) -> None:
    first, second = (model.build("squeezenet1_1", 3, 128, 64, seed) for seed in (1, 2))
    torch.save({"weights": first.state_dict(), "averaged": None, "step": 1}, tmp_path / "c.pt")
    model.load_weights_file(second, tmp_path / "c.pt")
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)


def test_other_files_of_weights_are_refused(tmp_path: Path) -> None:
    network = model.build("squeezenet1_1", 3, 128, 64, 0)
    other = model.build("shufflenet_v2_x0_5", 3, 128, 64, 0)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: weights of another model \(.* --model"):
        model.load_weights_file(network, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(InputError, match=r"text\.pth: not a file of weights"):
        model.load_weights_file(network, tmp_path / "text.pth")
    torch.save({"step": 3}, tmp_path / "step.pth")
    with pytest.raises(InputError, match=r"step\.pth: contains no named tensors"):
        model.load_weights_file(network, tmp_path / "step.pth")


@pytest.mark.parametrize(
    ("able", "name", "crop_frames", "expected"),
    [
        ({"avx512_bf16": True}, "resnet18", 128, True),
        ({"amx_bf16": True}, "resnet18", 128, True),
        ({"amx_bf16": True}, "resnet18", 32, False),
        ({"avx2": True}, "resnet18", 128, False),
        ({"avx512_bf16": True}, "mobilenet_v3_small", 128, False),
    ],
)
def test_bfloat16_is_for_processors_and_models_that_it_makes_faster(
    monkeypatch: pytest.MonkeyPatch,
    able: dict[str, bool],
    name: str,
    crop_frames: int,
    expected: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    network = model.build(name, 3, 128, crop_frames, 0)
    assert model.computes_in_bfloat16("cpu", network, crop_frames) is expected
    assert model.computes_in_bfloat16("cuda", network, crop_frames)
    with model.autocast(torch.device("cpu"), network, crop_frames):
        assert torch.is_autocast_enabled("cpu") is expected


def leave_nan_in_freed_memory(*_: object) -> None:
    for n_values in (100, 1000, 10_000, 100_000, 1_000_000, 3_000_000) * 4:
        torch.full((n_values,), math.nan)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet"])
@pytest.mark.parametrize("crop_frames", [32, model.LEAST_BFLOAT16_FRAMES])
def test_a_model_reads_no_memory_that_nobody_wrote(name: str, crop_frames: int) -> None:
    """A model once read uninitialised memory, in bfloat16 with narrow crops on an AMX processor."""
    device.choose("cpu")  # makes malloc reuse freed memory
    network = model.build(name, 3, 128, crop_frames, 0).train()
    for module in network.modules():
        module.register_forward_pre_hook(leave_nan_in_freed_memory)
    crops = torch.randn(6, 1, 128, crop_frames).contiguous(memory_format=torch.channels_last)
    with model.autocast(crops.device, network, crop_frames):
        assert torch.isfinite(network(crops)).all()
