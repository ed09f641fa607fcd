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
from torch import nn

from music_genre import checkpoint, dataset, training
from music_genre.artifacts import read_table
from music_genre.config import CRITERIA, OPTIMIZERS, TrainConfig
from music_genre.errors import InputError, StoppedError

# mnasnet has both batch norm and dropout: all the state there can be. 6 steps an epoch.
CONFIG = TrainConfig(model="mnasnet0_5", epochs=3, batch_size=3, crop_frames=32)


def test_one_update_equals_a_hand_written_nesterov_step() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    crops, labels = torch.randn(4, 1, 2, 3), torch.tensor([0, 1, 2, 1])
    config = TrainConfig(learning_rate=0.1, weight_decay=0.01, label_smoothing=0.0)
    optimizer = training.make_optimizer(network, config)
    criterion = training.make_criterion(config)
    weight, bias = (p.detach().clone() for p in network.parameters())
    momentum = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(3):
        training.update(network, optimizer, criterion, crops, labels)
        inputs = crops.flatten(1)
        error = (inputs @ weight.T + bias).softmax(dim=1)
        error[range(4), labels] -= 1
        gradients = [error.T @ inputs / 4 + 0.01 * weight, error.mean(dim=0)]
        for place, (value, gradient) in enumerate(zip((weight, bias), gradients, strict=True)):
            momentum[place] = 0.9 * momentum[place] + gradient
            value -= 0.1 * (gradient + 0.9 * momentum[place])
    torch.testing.assert_close(network[1].weight, weight)
    torch.testing.assert_close(network[1].bias, bias)


def test_focal_loss_equals_its_formula() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    p = logits.softmax(dim=1)[:, 0]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(training.focal_loss(logits, labels, 2.0), expected)
    torch.testing.assert_close(
        training.focal_loss(logits, labels, 0.0), nn.functional.cross_entropy(logits, labels)
    )


@pytest.mark.parametrize("n_steps", [1, 2, 10, 997])
def test_the_schedule_equals_torchs_one_cycle(n_steps: int) -> None:
    ours = [training.learning_rate(step, n_steps, 0.3) for step in range(n_steps)]
    assert max(ours) <= 0.3
    if n_steps < 10:
        return
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=n_steps)
    for step in range(n_steps):
        assert ours[step] == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        if step + 1 < n_steps:
            theirs.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_optimizer_lowers_every_loss(name: str, criterion: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    config = TrainConfig(optimizer=name, criterion=criterion, learning_rate=0.01)
    optimizer = training.make_optimizer(network, config)
    loss_of = training.make_criterion(config)
    crops = torch.randn(32, 1, 2, 3)
    labels = (crops.sum(dim=(1, 2, 3)) > 0).long()
    losses = [float(training.update(network, optimizer, loss_of, crops, labels)) for _ in range(99)]
    assert losses[-1] < 0.7 * losses[0]
    assert type(optimizer).__name__.lower() == name


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
