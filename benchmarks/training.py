"""Run `music-genre train` and torchvision's reference loop in turn; compare the whole processes.

    .venv/ml/bin/python benchmarks/training.py --models resnet18 shufflenet_v2_x0_5 --epochs 10

Both train the same model on the same tracks, with the same batch and crop size, and see the same
number of images per epoch: for torchvision's loop each track's image is cut into pieces, as scripts
for GTZAN do. Accuracy is per track, on one test split for both. For the row "no data" our update
steps are repeated on one batch in memory. On a GPU the last column is the share of the process's
time in which the GPU computed, according to `nvidia-smi`; the process's time includes the start of
Python and of CUDA.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
import torchvision
from PIL import Image

from music_genre.config import TrainConfig
from music_genre.dataset import split as dataset
from music_genre.model import device
from music_genre.model import network as model
from music_genre.resources import usable_cores
from music_genre.training import optimization

ROOT = Path(__file__).parents[1]
DEMO_MUSIC = ROOT / "deploy" / "demo_music" / "genres_original"
ROWS = 128
"""Height of an image and of a crop, in pixels."""


SYNTHETIC_STEPS, WARM_UP_STEPS = 30, 5


class Timed(NamedTuple):
    """The result of a timed call, and its cost."""

    result: dict[str, Any]
    seconds: float
    cpu_seconds: float
    gpu_share: float | None
    """Mean utilisation of the GPU, 0 to 1; None without a GPU."""


class Outcome(NamedTuple):
    """Speed, accuracy and cost of a training."""

    images_per_second: float
    accuracy: float
    took: Timed


def run(*command: str | Path) -> dict[str, Any]:
    """Run a command; returns the JSON object in the last line of its output."""
    path = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        stderr=subprocess.DEVNULL,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def music_genre(*arguments: str | Path) -> dict[str, Any]:
    """Run a stage of `music-genre`; returns its result."""
    return run(sys.executable, "-m", "music_genre", *arguments)


def timed(work: Callable[[], dict[str, Any]], given: argparse.Namespace) -> Timed:
    """Call `work`, which runs processes; returns its result, wall and CPU seconds, GPU share."""
    began, before = time.monotonic(), os.times()
    with tempfile.TemporaryFile("w+") as readings:
        watch = _watch_gpu(readings) if given.device == "cuda" else None
        try:
            result = work()
        finally:
            if watch is not None:
                watch.terminate()
                watch.wait()
        readings.seek(0)
        shares = [int(line) / 100 for line in readings if line.strip().isdecimal()]
    after = os.times()
    cpu = after.children_user - before.children_user
    cpu += after.children_system - before.children_system
    share = statistics.mean(shares) if shares else None
    return Timed(result, time.monotonic() - began, cpu, share)


def _watch_gpu(readings: IO[str]) -> subprocess.Popen[str]:
    """Start nvidia-smi, which writes the first GPU's utilisation five times a second."""
    asked = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    words = ["nvidia-smi", *asked, "--id=0", "--loop-ms=200"]
    return subprocess.Popen(words, stdout=readings, text=True)


def prepare(audio: Path, store: Path) -> Path:
    """Scan, extract and split; returns the split."""
    catalogue = music_genre("scan", "--audio", audio, "--artifacts", store)["catalogue"]
    options = ("--catalogue", catalogue, "--artifacts", store)
    images = music_genre("extract", *options)["images"]
    return Path(music_genre("split", *options, "--images", images)["split"])


def write_pieces(split_dir: Path, folder: Path, crop_frames: int) -> None:
    """Cut the split's images into crops, in the folder layout that ImageFolder reads."""
    split = dataset.read_split(split_dir)
    for example in split.examples:
        place = folder / example.split / example.genre
        place.mkdir(parents=True, exist_ok=True)
        with Image.open(split.images_dir / example.image) as image:
            for number in range(max(1, image.width // crop_frames)):
                piece = image.crop((number * crop_frames, 0, (number + 1) * crop_frames, ROWS))
                piece.save(place / f"{Path(example.path).stem}-{number}.png")


def ours(split: Path, store: Path, given: argparse.Namespace, model: str) -> Outcome:
    """Train and evaluate with the command line `music-genre`."""
    options = ("--epochs", str(given.epochs), "--batch-size", str(given.batch_size))
    sizes = ("--crop-frames", str(given.crop_frames), "--device", given.device)
    common = ("--split", split, "--artifacts", store, "--model", model)
    took = timed(lambda: music_genre("train", *common, *options, *sizes), given)
    measured = music_genre("evaluate", "--run", took.result["run"], "--device", given.device)
    return Outcome(took.result["images_per_second"], measured["accuracy"], took)


def theirs(pieces: Path, given: argparse.Namespace, model: str) -> Outcome:
    """Train and evaluate as torchvision's reference script does."""
    options = ("--epochs", str(given.epochs), "--batch-size", str(given.batch_size))
    size = ("--crop-size", str(ROWS), str(given.crop_frames))
    machine = ("--workers", str(given.workers), "--device", given.device)
    script = Path(__file__).parent / "rivals" / "torchvision_reference.py"
    command = (sys.executable, script, "--data-path", pieces, "--model", model)
    took = timed(lambda: run(*command, *options, *size, *machine), given)
    return Outcome(took.result["images_per_second"], took.result["accuracy"], took)


def synthetic(given: argparse.Namespace, model_name: str) -> tuple[float, str]:
    """Do our update steps on one batch in memory; returns images per second and the precision."""
    chosen = device.choose(given.device)
    config = TrainConfig(model=model_name)
    network = model.build(model_name, 7, ROWS, given.crop_frames, 0).to(chosen)
    optimizer = optimization.make_optimizer(network, config)
    criterion = optimization.make_criterion(config)
    size = (given.batch_size, 1, ROWS, given.crop_frames)
    crops = torch.randn(size, device=chosen).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(given.batch_size, dtype=torch.long, device=chosen)
    began = 0.0
    for step in range(SYNTHETIC_STEPS + WARM_UP_STEPS):
        if step == WARM_UP_STEPS:
            wait(chosen)
            began = time.monotonic()
        optimization.add_gradients(network, criterion, crops, labels)
        optimizer.step()
    wait(chosen)
    speed = SYNTHETIC_STEPS * int(given.batch_size) / (time.monotonic() - began)
    bfloat16 = model.computes_in_bfloat16(chosen.type, network, given.crop_frames)
    return speed, "bfloat16" if bfloat16 else "float32"


def wait(chosen: torch.device) -> None:
    """Wait until a GPU has finished its queued work."""
    if chosen.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Prepare the data, train each model with torchvision's loop and with ours, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, default=DEMO_MUSIC)
    parser.add_argument("--models", nargs="+", default=["resnet18", "shufflenet_v2_x0_5"])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--crop-frames", type=int, default=ROWS)
    parser.add_argument(
        "--workers", type=int, default=usable_cores(), help="workers of the DataLoader"
    )
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    hardware = torch.cuda.get_device_name() if given.device == "cuda" else f"{usable_cores()} cores"
    print(
        f"{time.strftime('%Y-%m-%d')}, {hardware} ({platform.machine()}), "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    )
    print(f"batch {given.batch_size}, {ROWS} x {given.crop_frames}, {given.epochs} epochs")
    columns = ("images/s", "ratio", "accuracy", "wall s", "CPU s", "GPU")
    print(f"{'':34}" + "".join(f"{column:>10}" for column in columns))
    with tempfile.TemporaryDirectory() as scratch:
        store, pieces = Path(scratch) / "store", Path(scratch) / "pieces"
        split = prepare(given.audio, store)
        write_pieces(split, pieces, given.crop_frames)
        for name in given.models:
            show(name, theirs(pieces, given, name), ours(split, store, given, name))
            speed, precision = synthetic(given, name)
            print(f"{name:20} {'no data':13}{speed:10.1f}  (ours in {precision})", flush=True)


def show(name: str, rival: Outcome, own: Outcome) -> None:
    """Print a model's row for torchvision and its row for music-genre."""
    for label, outcome in (("torchvision", rival), ("music-genre", own)):
        ratio = outcome.images_per_second / rival.images_per_second
        took = outcome.took
        busy = "" if took.gpu_share is None else f"{took.gpu_share:.0%}"
        print(
            f"{name:20} {label:13}{outcome.images_per_second:10.1f}{ratio:10.2f}"
            f"{outcome.accuracy:10.2f}{took.seconds:10.1f}{took.cpu_seconds:10.1f}{busy:>10}",
            flush=True,
        )


if __name__ == "__main__":
    main()
