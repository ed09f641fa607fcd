"""Training: each step is right, it learns, and it resumes exactly."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Prepared, contents

from music_genre import checkpoint, dataset, training
from music_genre.artifacts import read_table
from music_genre.config import TrainConfig
from music_genre.errors import InputError, StoppedError

# mnasnet has both batch norm and dropout: all the state there can be. 6 steps an epoch.
CONFIG = TrainConfig(model="mnasnet0_5", epochs=3, batch_size=3, crop_frames=32)


def test_the_model_overfits_eight_clips() -> None:
    random = np.random.default_rng(3)
    images = [random.integers(0, 256, (32, 32), dtype=np.uint8) for _ in range(8)]
    stacked = dataset.stack_images(images, list(range(8)))
    config = TrainConfig(
        model="resnet18",
        epochs=40,
        batch_size=8,
        crop_frames=32,
        frequency_mask=0,
        time_mask=0,
        label_smoothing=0.0,
    )
    trainer = training.Trainer(config, stacked, stacked, 8)
    while trainer.step < trainer.n_steps:
        trainer.train_step()
        if trainer.epoch_is_over:
            row = trainer.end_epoch(lambda: None)
    assert row["validation_accuracy"] == 1.0
    assert row["train_loss"] < 0.05


def test_a_diverged_training_says_so(prepared: Prepared, tmp_path: Path) -> None:
    config = replace(CONFIG, learning_rate=1e30)
    with pytest.raises(InputError, match=r"training diverged; .* --learning-rate below 1e\+30"):
        training.train(prepared.split, tmp_path, config, device_name="cpu")


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_weights(run, torch.device("cpu"))


def assert_same_training(run: Path, other: Path) -> None:
    ours, theirs = weights_of(run), weights_of(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    timings = {"images_per_second", "seconds"}
    histories = [
        [
            {k: v for k, v in row.items() if k not in timings}
            for row in read_table(r / "history.csv")
        ]
        for r in (run, other)
    ]
    assert histories[0] == histories[1]


@pytest.fixture(scope="module")
def uninterrupted(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    training.train(prepared.split, prepared.store, CONFIG, into=run, device_name="cpu")
    return run


@pytest.mark.parametrize("stop_at", [1, 8, 12, 17])
def test_resumed_equals_uninterrupted_bit_for_bit(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path, stop_at: int
) -> None:
    def stop(done: int, total: int, note: str = "", /) -> None:
        if done == stop_at and not note:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match=f"stopped by SIGTERM at step {stop_at} of 18, saved"):
        training.train(
            prepared.split, tmp_path, CONFIG, into=tmp_path, device_name="cpu", progress=stop
        )
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "training.json").exists()
    torch.rand(3)
    result = training.train(prepared.split, tmp_path, CONFIG, into=tmp_path, device_name="cpu")
    assert result["reused"] is False
    assert result["steps"] == 18
    assert_same_training(tmp_path, uninterrupted)


def test_a_kill_between_checkpoints_repeats_the_steps_since(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path
) -> None:
    def crash(done: int, total: int, note: str = "", /) -> None:
        if done == 9:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        training.train(
            prepared.split,
            tmp_path,
            CONFIG,
            into=tmp_path,
            device_name="cpu",
            checkpoint_seconds=0.0,
            progress=crash,
        )
    state = checkpoint.load(tmp_path, torch.device("cpu"))
    assert state is not None
    assert state["step"] == 8
    training.train(prepared.split, tmp_path, CONFIG, into=tmp_path, device_name="cpu")
    assert_same_training(tmp_path, uninterrupted)


def start_training(prepared: Prepared, run: Path) -> subprocess.Popen[str]:
    arguments = ["train", "--split", str(prepared.split), "--run", str(run), "--device", "cpu"]
    settings = ["--model", CONFIG.model, "--batch-size", "3", "--crop-frames", "32"]
    return subprocess.Popen(
        [sys.executable, "-m", "music_genre", *arguments, *settings, "--epochs", "8"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(training.__file__).parents[1])},
    )


def test_sigterm_to_a_real_process_saves_exits_75_and_resumes_exactly(
    prepared: Prepared, tmp_path: Path
) -> None:
    process = start_training(prepared, tmp_path / "run")
    assert process.stderr
    for line in process.stderr:
        if line.startswith("epoch=2 "):
            break
    process.terminate()
    began = time.monotonic()
    stdout, stderr = process.communicate(timeout=10)
    assert time.monotonic() - began < 3
    assert process.returncode == 75, stderr
    assert stdout == ""
    assert stderr.splitlines()[-1].startswith("error: stopped by SIGTERM at step ")
    resumed = start_training(prepared, tmp_path / "run")
    _, stderr = resumed.communicate(timeout=120)
    assert resumed.returncode == 0
    assert "resuming at step " in stderr
    config = replace(CONFIG, epochs=8)
    training.train(prepared.split, tmp_path, config, into=tmp_path / "straight", device_name="cpu")
    assert_same_training(tmp_path / "run", tmp_path / "straight")


def test_a_finished_run_is_left_alone(prepared: Prepared, uninterrupted: Path) -> None:
    before = contents(uninterrupted)
    result = training.train(prepared.split, prepared.store, CONFIG, into=uninterrupted)
    assert result["reused"] is True
    assert contents(uninterrupted) == before


def test_other_settings_in_the_same_folder_are_refused(
    prepared: Prepared, uninterrupted: Path
) -> None:
    with pytest.raises(InputError, match="was begun with epochs 3, not 4; choose another"):
        training.train(
            prepared.split, prepared.store, replace(CONFIG, epochs=4), into=uninterrupted
        )


def test_history_has_a_row_per_epoch(uninterrupted: Path) -> None:
    rows = read_table(uninterrupted / "history.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["6", "12", "18"]
    assert list(rows[0])[:6] == [
        "epoch",
        "step",
        "train_loss",
        "validation_loss",
        "validation_accuracy",
        "learning_rate",
    ]
