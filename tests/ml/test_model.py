"""Torchvision's models on grey crops, and tracks' probabilities."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from music_genre import dataset, model
from music_genre.config import usable_cores
from music_genre.errors import InputError


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
    with pytest.raises(InputError, match=r"--model resnet17: .*near names: .*resnet1"):
        model.build("resnet17", 7, 128, 128, 0)


@pytest.mark.parametrize("name", ["vit_b_16", "alexnet"])
def test_a_model_that_cannot_take_the_crop_says_so(name: str) -> None:
    with pytest.raises(InputError, match=f"--model {name}: cannot take crops of 128 x 8"):
        model.build(name, 7, 128, 8, 0)


def test_even_crops_cover_every_frame_of_every_track() -> None:
    lengths = torch.tensor([100, 30, 31, 5, 60])
    tracks, starts = model.even_crops(lengths, 30)
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
    images = dataset.stack_images([np.hstack([dark, bright]), bright], [0, 1])
    probabilities = model.track_probabilities(Brightness(), images, 10)
    low, high = (1 / (1 + np.exp(-level)) for level in (-2.0, 2.0))
    np.testing.assert_allclose(probabilities[:, 0], [(low + high) / 2, high], rtol=1e-5)
    np.testing.assert_allclose(probabilities.sum(dim=1), 1, rtol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_auto_says_that_it_takes_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert model.choose_device("auto").type == "cpu"
    threads = usable_cores()
    assert caplog.messages == [
        f"no NVIDIA GPU is visible: computing on the CPU ({threads} threads)"
    ]
    with pytest.raises(InputError, match="--device cuda: no NVIDIA GPU is visible"):
        model.choose_device("cuda")
