"""Settings, and the cores a container grants."""

import os
from pathlib import Path

import pytest

from music_genre import config, resources
from music_genre.config import TrainConfig
from music_genre.errors import InputError


def test_a_learning_rate_comes_with_the_optimizer() -> None:
    assert TrainConfig(optimizer="adam").learning_rate == config.OPTIMIZERS["adam"]
    assert TrainConfig(optimizer="adam", learning_rate=0.5).learning_rate == 0.5
    assert TrainConfig(optimizer="sdg") == TrainConfig(optimizer="sgd")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_usable_cores_heed_the_containers_quota(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    assert resources.usable_cores() == cores


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_settings_are_finite(value: float) -> None:
    with pytest.raises(InputError, match=r"--learning-rate (nan|inf): not a finite number"):
        config.TrainConfig(learning_rate=value)
