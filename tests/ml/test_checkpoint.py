"""Run folders: whose they are, and what a damaged checkpoint says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from music_genre import checkpoint
from music_genre.checkpoint import RunSettings
from music_genre.config import FeatureConfig, TrainConfig
from music_genre.errors import InputError

SETTINGS = RunSettings(TrainConfig(), ["a", "b"], FeatureConfig(), 128, "0123", 1)
CPU = torch.device("cpu")


def test_a_claimed_run_reads_back(tmp_path: Path) -> None:
    checkpoint.claim(tmp_path / "run", SETTINGS, tmp_path / "split")
    assert checkpoint.read_settings(tmp_path / "run") == (SETTINGS, tmp_path / "split")
    checkpoint.claim(tmp_path / "run", SETTINGS, tmp_path / "split")


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint.claim(tmp_path, SETTINGS, tmp_path / "split")
    other = replace(SETTINGS, config=TrainConfig(epochs=7, optimizer="adam"), split_key="4567")
    with pytest.raises(InputError) as refusal:
        checkpoint.claim(tmp_path, other, tmp_path / "split")
    for part in ("optimizer sgd, not adam", "epochs 30, not 7", "split_key 0123, not 4567"):
        assert part in str(refusal.value)
    assert "seed" not in str(refusal.value)


def test_a_checkpoint_reads_back(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, CPU) is None
    checkpoint.save(tmp_path, {"weights": {"x": torch.arange(3)}, "step": 5})
    state = checkpoint.load(tmp_path, CPU)
    assert state is not None
    assert state["step"] == 5
    assert torch.equal(state["weights"]["x"], torch.arange(3))


@pytest.mark.parametrize("keep", [0, 10, 700])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, keep: int) -> None:
    checkpoint.save(tmp_path, {"weights": {"x": torch.arange(300)}})
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"checkpoint\.pt: damaged .*delete it"):
        checkpoint.load(tmp_path, CPU)


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no settings\.json"):
        checkpoint.read_settings(tmp_path)
    (tmp_path / "settings.json").write_text('{"config": {"epoch": 3}}')
    with pytest.raises(InputError, match="not as this version writes it"):
        checkpoint.read_settings(tmp_path)


def test_weights_of_an_unfinished_run_are_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"weights": {}})
    with pytest.raises(InputError, match="has not finished; run train again"):
        checkpoint.load_weights(tmp_path, CPU)
