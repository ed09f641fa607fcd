"""A trained model: its own weights, its own genres, and the same answer alone or in a batch."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from music_genre.errors import InputError
from music_genre.model import checkpoint
from music_genre.model.classifier import Classifier
from music_genre.model.network import build
from music_genre.store import records

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_company_does_not_change_a_digit(name: str) -> None:
    """An image gets the same probabilities alone as in a batch with other images.

    This is not obvious: oneDNN rounds differently for different batch sizes.
    """
    classifier = Classifier(build(name, 7, 128, 64, 0), list("abcdefg"), None, 128, 64)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (128, n), dtype=np.uint8) for n in (700, 64, 1_300, 2_100)]
    together = np.stack(list(classifier.probabilities(images)))
    alone = np.stack([next(classifier.probabilities([image])) for image in images])
    np.testing.assert_array_equal(together, alone)


def test_an_image_has_the_same_probabilities_alone_and_among_others(trained: Path) -> None:
    classifier = Classifier.load(trained, CPU)
    random = np.random.default_rng(0)
    lengths = [87, 31, 4_000, 40, 87, 9_000, 5]
    images = [random.integers(0, 256, (128, n), dtype=np.uint8) for n in lengths]
    together = np.stack(list(classifier.probabilities(images)))
    alone = np.stack([next(classifier.probabilities([image])) for image in images])
    np.testing.assert_array_equal(together, alone)
    assert together.shape == (7, 3)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def test_a_checkpoint_of_another_run_is_refused(copy: Path) -> None:
    record = records.read_json(copy / "training.json") or {}
    state = torch.load(copy / record["checkpoint"], weights_only=True)
    other = checkpoint.save(copy, state | {"run": "0123456789ab"})
    records.write_json(copy / "training.json", record | {"checkpoint": other.name})
    with pytest.raises(InputError, match=r"to another run \(0123456789ab, not "):
        Classifier.load(copy, CPU)


def test_a_checkpoint_of_other_genres_is_refused(copy: Path) -> None:
    record = records.read_json(copy / "settings.json") or {}
    records.write_json(copy / "settings.json", record | {"genres": ["dub", "funk", "ska"]})
    with pytest.raises(InputError, match=r"trained on the genres bass, lead, noise, but settings"):
        Classifier.load(copy, CPU)
