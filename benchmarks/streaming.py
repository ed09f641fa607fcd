"""Train on more images than fit into memory; compare streamed and resident speed on fewer images.

    .venv/ml/bin/python benchmarks/streaming.py --times 100

The small set has 1,000 generated images, as many as GTZAN. Each image is as large as that of a 30 s
track. The large set has --times as many images: each image is hard-linked under --times names.
The trainer runs some epochs on the small set, once resident (all images in memory) and once
streamed (images read from a file). It then trains on the large set, streamed, for --seconds while
its memory is sampled.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from training import ROOT, music_genre

from music_genre.audio.catalogue import scan
from music_genre.config import SplitConfig, TrainConfig
from music_genre.dataset import split as dataset
from music_genre.features import pictures
from music_genre.model import checkpoint
from music_genre.resources import usable_cores

N_GENRES, N_TRACKS = 10, 1000
SHAPE = (128, 1293)
"""Rows and columns of a 30 s track's image."""
EPOCHS = 8
"""Epochs on the small set; the median speed over the epochs counts."""


def write_images(folder: Path, times: int) -> None:
    """Write each image once, then hard-link it until it has `times` names."""
    noise = np.random.default_rng(0)
    for number in range(N_TRACKS):
        genre = folder / f"genre{number % N_GENRES}"
        genre.mkdir(parents=True, exist_ok=True)
        image = noise.integers(0, 256, SHAPE, dtype=np.uint8)
        pictures.write_picture(genre / f"{number:05}.0.png", SHAPE, [image])
        for copy in range(1, times):
            os.link(genre / f"{number:05}.0.png", genre / f"{number:05}.{copy}.png")


def split_images(images: Path, store: Path) -> Path:
    """Split a folder of pictures."""
    catalogue = Path(scan(images, store, kind=pictures.PICTURES)["catalogue"])
    return Path(dataset.split(catalogue, None, store, SplitConfig())["split"])


def command(split: Path, store: Path, mode: str, given: argparse.Namespace) -> list[str | Path]:
    """Return the arguments of a training."""
    where = ("train", "--split", split, "--artifacts", store, "--run", store / mode, "--data", mode)
    options = ("--model", given.model, "--device", given.device)
    return [*where, *options, "--epochs", str(EPOCHS), "--crop-frames", str(given.crop_frames)]


def memory_mib(pid: int) -> float:
    """Read a process's resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def newest_step(run: Path) -> tuple[int, float]:
    """Return the newest checkpoint's step, and when it was written."""
    path = checkpoint.find(run)[0]
    return int(path.name.split("-")[1].split(".")[0]), path.stat().st_mtime


def train_large(split: Path, store: Path, given: argparse.Namespace) -> tuple[list[float], float]:
    """Train for --seconds, counted from the first checkpoint.

    Returns:
        Samples of memory in MiB, one per second; images per second, checkpoints included.
    """
    arguments = [str(part) for part in command(split, store, "streamed", given)]
    process = subprocess.Popen(
        [sys.executable, "-m", "music_genre", *arguments, "--checkpoint-seconds", "5"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    run = store / "streamed"
    while not checkpoint.find(run) and process.poll() is None:
        time.sleep(0.5)
    samples, (first, began) = [], newest_step(run)
    for _ in range(given.seconds):
        samples.append(memory_mib(process.pid))
        time.sleep(1)
    last, ended = newest_step(run)
    process.send_signal(signal.SIGTERM)
    if process.wait() != 75:
        raise SystemExit(f"the training ended with exit code {process.returncode}")
    return samples, (last - first) * TrainConfig().batch_size / (ended - began)


def main() -> None:
    """Generate the images, train on both sets, print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--model", default="shufflenet_v2_x0_5")
    parser.add_argument("--crop-frames", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scratch", type=Path, help="folder with room for the large set")
    given = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {given.device}, {usable_cores()} cores, "
        f"torch {torch.__version__}, {given.model}, crops of 128 x {given.crop_frames}"
    )
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        small, large = Path(scratch) / "small", Path(scratch) / "large"
        write_images(small / "images", 1)
        split = split_images(small / "images", small / "store")
        speeds = {
            mode: music_genre(*command(split, small / "store", mode, given))["images_per_second"]
            for mode in ("resident", "streamed")
        }
        ratio = speeds["streamed"] / speeds["resident"]
        print(
            f"{N_TRACKS:,} images: resident {speeds['resident']} images/s, "
            f"streamed {speeds['streamed']} images/s, ratio {ratio:.2f}",
            flush=True,
        )
        write_images(large / "images", given.times)
        began = time.monotonic()
        split = split_images(large / "images", large / "store")
        print(f"{N_TRACKS * given.times:,} images: split in {time.monotonic() - began:.0f} s")
        samples, speed = train_large(split, large / "store", given)
        size = sum(path.stat().st_size for path in large.rglob("frames.u8"))
        quarter = max(1, len(samples) // 4)
        shown = ", ".join(
            f"{max(samples[i : i + quarter]):.0f}" for i in range(0, len(samples), quarter)
        )
        print(
            f"streamed from {size / 1e9:.1f} GB for {len(samples)} s: "
            f"peak memory in each quarter: {shown} MiB; {speed:.1f} images/s, "
            f"{speed / speeds['resident']:.2f} times the resident speed of the small set"
        )


if __name__ == "__main__":
    main()
