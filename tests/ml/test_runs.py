"""Run folders: the settings that they belong to, and the data that can be read without torch."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from music_genre.config import FeatureConfig, TrainConfig
from music_genre.errors import InputError
from music_genre.store import records, runs

SETTINGS = runs.RunSettings(
    config=TrainConfig(),
    genres=["a", "b"],
    features=FeatureConfig(),
    n_mels=128,
    data_key="abcd",
    split_key="0123",
    weights="",
    recipe=1,
)


def test_a_claimed_run_reads_back(tmp_path: Path) -> None:
    runs.claim(tmp_path / "run", SETTINGS, tmp_path / "split")
    assert runs.read_settings(tmp_path / "run") == (SETTINGS, tmp_path / "split")
    runs.claim(tmp_path / "run", SETTINGS, tmp_path / "split")


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    runs.claim(tmp_path, SETTINGS, tmp_path / "split")
    other = replace(SETTINGS, config=TrainConfig(epochs=7, optimizer="adam"), split_key="4567")
    with pytest.raises(InputError) as refusal:
        runs.claim(tmp_path, other, tmp_path / "split")
    for part in ("optimizer sgd, not adam", "epochs 30, not 7", "split_key 0123, not 4567"):
        assert part in str(refusal.value)
    assert "seed" not in str(refusal.value)


def test_a_setting_of_zero_is_shown_as_such(tmp_path: Path) -> None:
    runs.claim(tmp_path, SETTINGS, tmp_path / "split")
    other = replace(SETTINGS, config=TrainConfig(seed=5), weights="cafe")
    with pytest.raises(InputError, match="started with seed 0, not 5; weights none, not cafe"):
        runs.claim(tmp_path, other, tmp_path / "split")


def test_a_finished_run_whose_settings_are_gone_is_nobody_elses(tmp_path: Path) -> None:
    records.write_json(tmp_path / "training.json", {"key": SETTINGS.key})
    runs.claim(tmp_path, SETTINGS, tmp_path / "split")
    (tmp_path / "settings.json").unlink()
    with pytest.raises(InputError, match=r"no settings\.json and was trained with other settings"):
        runs.claim(tmp_path, replace(SETTINGS, n_mels=64), tmp_path / "split")


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"contains no settings\.json"):
        runs.read_settings(tmp_path)
    (tmp_path / "settings.json").write_text('{"config": {"epoch": 3}}')
    with pytest.raises(InputError, match="not in the format of this version"):
        runs.read_settings(tmp_path)


def test_the_stage_of_training_loads_no_torch() -> None:
    code = "import sys, music_genre.training.loop; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
