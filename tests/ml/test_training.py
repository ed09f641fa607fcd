"""Training: each step is right, the model learns, and a stopped training resumes exactly."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Prepared, Run, contents

from music_genre.config import Machine, TrainConfig
from music_genre.dataset import crops as tensors
from music_genre.errors import InputError, StoppedError, TemporaryError
from music_genre.model import checkpoint
from music_genre.model import network as model
from music_genre.model.classifier import track_probabilities
from music_genre.store import locks, signals
from music_genre.store.tables import read_table
from music_genre.training import loop, trainer
from music_genre.training.trainer import Trainer
from tests.music import write_few_tracks

# mnasnet has both batch norm and dropout. With momentum, mixup and averaged weights, a checkpoint
# has every kind of state to restore. An epoch has 6 steps.
CONFIG = TrainConfig(
    model="mnasnet0_5",
    epochs=3,
    batch_size=3,
    crop_frames=32,
    mixup=0.3,
    ema_decay=0.9,
    learning_rate=0.003,
)
CPU = Machine(device="cpu")
ROOT = Path(loop.__file__).parents[2]
GRACE = signals.GRACE  # of started processes; conftest.py lengthens the grace of this process


@pytest.fixture
def eight_clips() -> tensors.Images:
    source = np.random.default_rng(3)
    clips = [source.integers(0, 256, (32, 32), dtype=np.uint8) for _ in range(8)]
    return tensors.stack_images(clips, list(range(8)))


def test_the_model_overfits_eight_clips_and_so_does_its_average(
    eight_clips: tensors.Images,
) -> None:
    """Batch norm statistics of the average settle late: on some processors after 40 epochs."""
    config = TrainConfig(
        epochs=50,
        batch_size=8,
        crop_frames=32,
        frequency_mask=0,
        time_mask=0,
        label_smoothing=0.0,
        ema_decay=0.8,
    )
    network = model.build("resnet18", 8, 32, 32, seed=0)
    trained = Trainer(config, eight_clips, eight_clips, network)
    while not trained.is_over:
        trained.train_step()
        if trained.epoch_is_over:
            row = trained.end_epoch()
    own = track_probabilities(network, eight_clips, 32, exact=True)
    assert own.argmax(dim=1).tolist() == list(range(8))
    assert row["validation_accuracy"] == 1.0
    assert row["train_loss"] < 0.05


def test_a_diverged_training_says_so(prepared: Prepared, tmp_path: Path) -> None:
    config = replace(CONFIG, learning_rate=1e30)
    with pytest.raises(InputError, match=r"training diverged; .* --learning-rate below 1e\+30"):
        loop.train(prepared.split, tmp_path, config, machine=CPU)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.shipped(checkpoint.load_last(run)[1])


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
    return left_alone(prepared, tmp_path_factory.mktemp("uninterrupted"), CONFIG)


def left_alone(prepared: Prepared, run: Path, config: TrainConfig) -> Path:
    loop.train(prepared.split, prepared.store, config, into=run, machine=CPU)
    return run


def interrupt(
    prepared: Prepared,
    run: Path,
    *,
    at: int,
    machine: Machine = CPU,
    checkpoint_seconds: float | None = None,
) -> None:
    """Train until step `at` is done, then end the training with an exception, as if killed."""

    def crash(done: int, total: int, note: str = "", /) -> None:
        if done == at:
            raise RuntimeError

    if checkpoint_seconds is not None:
        machine = replace(machine, checkpoint_seconds=checkpoint_seconds)
    with pytest.raises(RuntimeError):
        loop.train(prepared.split, run, CONFIG, into=run, machine=machine, progress=crash)


@pytest.mark.parametrize("stop_at", [1, 8, 17])
def test_resumed_equals_uninterrupted_bit_for_bit(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path, stop_at: int
) -> None:
    def stop(done: int, total: int, note: str = "", /) -> None:
        if done == stop_at and not note:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match=f"stopped by SIGTERM at step {stop_at} of 18, saved"):
        loop.train(prepared.split, tmp_path, CONFIG, into=tmp_path, machine=CPU, progress=stop)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "training.json").exists()
    torch.rand(3)
    result = loop.train(prepared.split, tmp_path, CONFIG, into=tmp_path, machine=CPU)
    assert result["reused"] is False
    assert result["steps"] == 18
    assert_same_training(tmp_path, uninterrupted)


def test_a_kill_between_checkpoints_repeats_the_steps_since(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path
) -> None:
    interrupt(prepared, tmp_path, at=9, checkpoint_seconds=0.0)
    assert [int(path.name[11:19]) for path in checkpoint.find(tmp_path)] == [8, 7]
    loop.train(prepared.split, tmp_path, CONFIG, into=tmp_path, machine=CPU)
    assert_same_training(tmp_path, uninterrupted)


def start_training(
    prepared: Prepared, run: Path, *options: str, config: TrainConfig = CONFIG
) -> subprocess.Popen[str]:
    arguments = ["train", "--split", str(prepared.split), "--run", str(run), "--device", "cpu"]
    settings = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in vars(config).items()
        if value != getattr(TrainConfig(), name)
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "music_genre", *arguments, *settings, *options],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def wait_for(process: subprocess.Popen[str], beginning: str) -> None:
    assert process.stderr
    for line in process.stderr:
        if line.startswith(beginning):
            return
    pytest.fail(f"ended without a line that begins with {beginning!r}")


LONGER = replace(CONFIG, epochs=8)


@pytest.fixture(scope="module")
def longer(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return left_alone(prepared, tmp_path_factory.mktemp("longer"), LONGER)


@pytest.mark.soak
def test_sigterm_to_a_real_process_saves_exits_75_and_resumes_exactly(
    prepared: Prepared, tmp_path: Path, longer: Path
) -> None:
    process = start_training(prepared, tmp_path, config=LONGER)
    wait_for(process, "epoch=2 ")
    process.terminate()
    began = time.monotonic()
    stdout, stderr = process.communicate(timeout=10)
    assert time.monotonic() - began < 10
    assert process.returncode == 75, stderr
    assert stdout == ""
    assert stderr.splitlines()[-1].startswith("error: stopped by SIGTERM at step ")
    resumed = start_training(prepared, tmp_path, config=LONGER)
    _, stderr = resumed.communicate(timeout=120)
    assert resumed.returncode == 0
    assert "resuming at step " in stderr
    assert_same_training(tmp_path, longer)


@pytest.mark.soak
def test_kill_9_loses_no_more_than_the_steps_since_the_checkpoint(
    prepared: Prepared, tmp_path: Path, longer: Path
) -> None:
    process = start_training(prepared, tmp_path, "--checkpoint-seconds=0", config=LONGER)
    wait_for(process, "epoch=2 ")
    process.kill()
    process.communicate()
    step = int(checkpoint.find(tmp_path)[0].name[11:19])
    assert step >= 12
    resumed = start_training(prepared, tmp_path, config=LONGER)
    _, stderr = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, stderr
    assert f"resuming at step {step} of 48" in stderr
    assert_same_training(tmp_path, longer)


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path
) -> None:
    interrupt(prepared, tmp_path, at=9, checkpoint_seconds=0.0)
    newest = checkpoint.find(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    loop.train(prepared.split, tmp_path, CONFIG, into=tmp_path, machine=CPU)
    assert_same_training(tmp_path, uninterrupted)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_killed_or_stopped_training_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, figures: dict[str, str]
) -> None:
    few = write_few_tracks(tmp_path / "genres")
    script = Path(__file__).parents[2] / "benchmarks" / "interruptions.py"
    words = [script, "--audio", few, "--kills", "10", "--terms", "20", "--epochs", "120"]
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for line in ended.stdout.splitlines()[2:]:
        name, times, *_, lost, ending, _, weights = line.split()
        figures[name] = (
            f"{times} times, at most {lost} s of work lost, ended after at most {ending} s, "
            f"weights {weights}"
        )


# A training in which each backward pass, from number `first` on, makes a C call of `seconds`.
SLOW_STEPS = """
import hashlib, json, os, sys, time
from pathlib import Path
import torch
from music_genre.training import loop
from music_genre.config import Machine, TrainConfig
from music_genre.errors import StoppedError
quick, n_passes = torch.autograd.backward, 0
first, seconds = int(sys.argv[4]), float(sys.argv[5])
began = time.perf_counter()
hashlib.pbkdf2_hmac("sha512", b"", b"", 10**5)
rounds = int(seconds * 10**5 / (time.perf_counter() - began))
def backward(loss):
    global n_passes
    n_passes += 1
    if n_passes >= first:
        print("standing", file=sys.stderr, flush=True)
        hashlib.pbkdf2_hmac("sha512", b"", b"", rounds)
    quick(loss)
torch.autograd.backward = backward
split, run = map(Path, sys.argv[1:3])
config = TrainConfig(**json.loads(sys.argv[3]))
try:
    loop.train(split, run, config, into=run, machine=Machine("cpu", checkpoint_seconds=0.0))
except StoppedError as error:  # as the command line does
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)
"""


def start_slow(
    prepared: Prepared, run: Path, *, first: int, seconds: float
) -> subprocess.Popen[str]:
    words = [prepared.split, run, json.dumps(vars(CONFIG)), first, seconds]
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_STEPS, *map(str, words)],
        text=True,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_what_a_killed_save_left_is_swept(prepared: Prepared, tmp_path: Path) -> None:
    interrupt(prepared, tmp_path, at=9, checkpoint_seconds=0.0)
    (tmp_path / ".tmp-of-a-killed-save").write_bytes(b"half")
    loop.train(prepared.split, tmp_path, CONFIG, into=tmp_path, machine=CPU)
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_history_that_was_not_written_is_written_by_the_resumed(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path
) -> None:
    interrupt(prepared, tmp_path, at=9, checkpoint_seconds=0.0)
    (tmp_path / "history.csv").unlink()
    interrupt(prepared, tmp_path, at=10)
    assert len(read_table(tmp_path / "history.csv")) == 1
    loop.train(prepared.split, tmp_path, CONFIG, into=tmp_path, machine=CPU)
    assert_same_training(tmp_path, uninterrupted)


def test_the_way_back_from_a_damaged_last_checkpoint_works(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    loop.train(prepared.split, tmp_path, CONFIG, into=run, machine=CPU)
    (last,) = checkpoint.find(run)
    last.write_bytes(b"x")
    with pytest.raises(InputError, match=r"delete .*training\.json and run train again"):
        weights_of(run)
    (run / "training.json").unlink()
    loop.train(prepared.split, tmp_path, CONFIG, into=run, machine=CPU)
    assert_same_training(run, uninterrupted)


def test_a_step_that_is_too_long_is_not_waited_for(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path
) -> None:
    process = start_slow(prepared, tmp_path, first=6, seconds=600)
    wait_for(process, "standing")
    process.terminate()
    began = time.monotonic()
    _, stderr = process.communicate(timeout=20)
    assert GRACE <= time.monotonic() - began < GRACE + 5
    assert process.returncode == 75
    assert stderr.startswith("error: stopped by SIGTERM at step 5 of 18, saved; run the same")
    loop.train(prepared.split, tmp_path, CONFIG, into=tmp_path, machine=CPU)
    assert_same_training(tmp_path, uninterrupted)


def test_a_stop_during_validation_saves_the_steps_before_it(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate, n_validations = trainer.track_probabilities, 0

    def stopped(*given: Any, after_batch: Callable[[], None], **options: Any) -> torch.Tensor:
        nonlocal n_validations
        n_validations += 1
        if n_validations == 2:
            signal.raise_signal(signal.SIGTERM)
        return validate(*given, after_batch=after_batch, **options)

    monkeypatch.setattr(trainer, "track_probabilities", stopped)
    with pytest.raises(StoppedError, match="stopped by SIGTERM at step 12 of 18, saved;"):
        loop.train(prepared.split, tmp_path, CONFIG, into=tmp_path, machine=CPU)
    assert len(read_table(tmp_path / "history.csv")) == 1
    loop.train(prepared.split, tmp_path, CONFIG, into=tmp_path, machine=CPU)
    assert_same_training(tmp_path, uninterrupted)


def test_a_stop_during_the_last_save_is_heeded_too(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save

    def stopped(run: Path, state: dict[str, Any]) -> Path:
        signal.raise_signal(signal.SIGTERM)
        return save(run, state)

    monkeypatch.setattr(checkpoint, "save", stopped)
    with pytest.raises(StoppedError, match="stopped by SIGTERM at step 18 of 18, saved;"):
        loop.train(prepared.split, tmp_path, CONFIG, into=tmp_path, machine=CPU)
    monkeypatch.undo()
    loop.train(prepared.split, tmp_path, CONFIG, into=tmp_path, machine=CPU)
    assert_same_training(tmp_path, uninterrupted)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_steps_of_six_seconds_stopped_at_twenty_moments_end_with_the_same_weights(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path, figures: dict[str, str]
) -> None:
    """A step that ends within the grace is saved. A longer step is lost; earlier steps are kept."""
    chance, endings, n_waited_for = random.Random(0), [], 0
    for _ in range(20):
        process = start_slow(prepared, tmp_path, first=1, seconds=6)
        wait_for(process, "standing")
        time.sleep(chance.uniform(0, 6))
        before = len(checkpoint.find(tmp_path)) and step_of(tmp_path)
        process.terminate()
        began = time.monotonic()
        _, stderr = process.communicate(timeout=30)
        endings.append(time.monotonic() - began)
        assert process.returncode == 75, stderr
        assert stderr.splitlines()[-1].startswith("error: stopped by SIGTERM at step ")
        after = len(checkpoint.find(tmp_path)) and step_of(tmp_path)
        assert after in (before, before + 1)
        n_waited_for += after > before
        if after == 17:
            break
    assert max(endings) < GRACE + 1
    loop.train(prepared.split, tmp_path, CONFIG, into=tmp_path, machine=CPU)
    assert_same_training(tmp_path, uninterrupted)
    figures["stopped"] = f"{len(endings)} times, ended after {max(endings):.1f} s at most"
    figures["steps that ended in time"] = f"{n_waited_for} of {len(endings)}"


def step_of(run: Path) -> int:
    return int(checkpoint.find(run)[0].name[11:19])


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_an_evaluation_stopped_at_twenty_moments_is_completed_by_running_it_again(
    trained: Path, prepared: Prepared, tmp_path: Path, figures: dict[str, str]
) -> None:
    run = shutil.copytree(prepared.store, tmp_path / "store") / "runs" / trained.name
    wanted = (run / "evaluation" / "metrics.json").read_text()
    shutil.rmtree(run / "evaluation")
    command = [sys.executable, "-m", "music_genre", "evaluate", "--run", run, "--device=cpu"]
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.monotonic() - began
    codes, endings = [], []
    for turn in range(20):
        shutil.rmtree(run / "evaluation", ignore_errors=True)
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(seconds * turn / 20)
        process.terminate()
        began = time.monotonic()
        codes.append(process.wait(timeout=30))
        endings.append(time.monotonic() - began)
        subprocess.run(command, check=True, capture_output=True)
        assert (run / "evaluation" / "metrics.json").read_text() == wanted
    assert set(codes) <= {0, 75, -signal.SIGTERM}  # -SIGTERM: Python was still starting
    assert codes.count(75) >= 10
    stopped = f"{codes.count(75)} of 20 times (else it had ended, or Python not yet begun)"
    figures["stopped"] = f"{stopped}, ended after {max(endings):.1f} s at most"


def test_streamed_images_train_the_same_weights(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path
) -> None:
    machine = replace(CPU, data="streamed")
    interrupt(prepared, tmp_path, at=8, machine=machine)
    assert list((tmp_path / "frames").rglob("frames.u8"))
    loop.train(prepared.split, tmp_path, CONFIG, into=tmp_path, machine=machine)
    assert_same_training(tmp_path, uninterrupted)


def test_a_second_training_in_the_same_folder_is_refused(
    prepared: Prepared, tmp_path: Path, run: Run
) -> None:
    with locks.folder_lock(tmp_path):
        refused = run("train", "--split", prepared.split, "--run", tmp_path, "--epochs", "1")
    assert refused.code == 75
    assert f"{tmp_path}: in use by process {os.getpid()} on" in refused.error
    assert not checkpoint.find(tmp_path)


def test_a_training_that_lost_its_folder_writes_nothing_more(
    prepared: Prepared, tmp_path: Path
) -> None:
    def take_over(done: int, total: int, note: str = "", /) -> None:
        if done == 7:
            record = json.loads((tmp_path / ".lock").read_text())
            (tmp_path / ".lock").write_text(json.dumps({**record, "holder": "another"}))

    with pytest.raises(TemporaryError, match="took it over while this process was suspended"):
        loop.train(
            prepared.split,
            tmp_path,
            CONFIG,
            into=tmp_path,
            machine=replace(CPU, checkpoint_seconds=0.0),
            progress=take_over,
        )
    assert [int(path.name[11:19]) for path in checkpoint.find(tmp_path)] == [6, 5]


def test_a_training_ends_with_its_parent(prepared: Prepared, tmp_path: Path) -> None:
    code = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "music_genre", *sys.argv[1:]],
                         stderr=subprocess.PIPE, text=True)
next(line for line in child.stderr if line.startswith("epoch=1 "))
print(child.pid, flush=True)
time.sleep(600)
"""
    options = ["--split", str(prepared.split), "--run", str(tmp_path), "--epochs=99"]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, "train", *options, "--model=shufflenet_v2_x0_5"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # if under nohup
    )
    assert parent.stdout
    trainer = Path(f"/proc/{parent.stdout.readline().strip()}")
    parent.kill()
    killed = time.monotonic()
    while (trainer / "exe").exists() and time.monotonic() < killed + 1:
        time.sleep(0.01)
    assert not (trainer / "exe").exists()
    parent.communicate()


def test_weights_to_begin_with_are_part_of_what_a_run_is(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path
) -> None:
    begin = checkpoint.find(uninterrupted)[0]
    config = replace(CONFIG, epochs=1, learning_rate=1e-6)
    options = {"machine": CPU, "into": tmp_path / "run"}
    loop.train(prepared.split, tmp_path, config, weights=begin, **options)
    ours, theirs = weights_of(tmp_path / "run"), weights_of(uninterrupted)
    torch.testing.assert_close(
        ours["classifier.1.weight"], theirs["classifier.1.weight"], atol=1e-4, rtol=0
    )
    with pytest.raises(InputError, match=r"was started with weights [0-9a-f]{32}, not none;"):
        loop.train(prepared.split, tmp_path, config, **options)


def test_a_finished_run_is_left_alone(prepared: Prepared, uninterrupted: Path) -> None:
    before = contents(uninterrupted)
    result = loop.train(prepared.split, prepared.store, CONFIG, into=uninterrupted)
    assert result["reused"] is True
    assert contents(uninterrupted) == before


def test_other_settings_in_the_same_folder_are_refused(
    prepared: Prepared, uninterrupted: Path
) -> None:
    with pytest.raises(InputError, match="was started with epochs 3, not 4; choose another"):
        loop.train(prepared.split, prepared.store, replace(CONFIG, epochs=4), into=uninterrupted)


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
