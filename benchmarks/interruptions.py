"""Interrupt a training many times; check that its final weights do not change.

    .venv/ml/bin/python benchmarks/interruptions.py --kills 20 --terms 20

One training runs to its end. Then, for kill -9 and for SIGTERM, the same training is interrupted
at random moments and resumed by the same command each time. Its final weights are compared bit for
bit with those of the first training. Half of the moments are counted from the start of the process,
so that loading and resuming are interrupted too. The other half are counted from a checkpoint.
Exits 1 if a training restarted at step 0, lost more than one checkpoint interval plus the time of a
save, took over 3 s to stop, ended with an unexpected code, or has different weights.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from training import DEMO_MUSIC, ROOT, prepare

from music_genre.model import checkpoint

START_SECONDS = 15.0
"""Longest delay of a signal after the start of a process, which then imports, loads or trains."""
SAVE_SECONDS = 2.0


@dataclass
class Tally:
    """Observations for one kind of signal."""

    name: str
    resumed_at: list[int] = field(default_factory=list)
    lost_seconds: list[float] = field(default_factory=list)
    """Time from the newest checkpoint to the interruption."""
    ending_seconds: list[float] = field(default_factory=list)
    """Time from the signal to the end of the process."""
    codes: set[int] = field(default_factory=set)
    equal: bool = False


def start(split: Path, run: Path, given: argparse.Namespace) -> subprocess.Popen[str]:
    """Start the training, or resume it."""
    options = ["--model", given.model, "--epochs", str(given.epochs), "--device", given.device]
    options += ["--mixup", "0.2", "--ema-decay", "0.99"]
    often = ["--checkpoint-seconds", str(given.checkpoint_seconds)]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "music_genre",
            "train",
            "--split",
            split,
            "--run",
            run,
            *options,
            *often,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def newest(run: Path) -> Path | None:
    """Return the newest checkpoint, if there is one."""
    return next(iter(checkpoint.find(run)), None)


def interrupt(
    process: subprocess.Popen[str],
    run: Path,
    number: signal.Signals,
    delay: float,
    tally: Tally,
    *,
    after_checkpoint: bool,
) -> bool:
    """Send a signal to a training, `delay` seconds after its start or after its next checkpoint.

    Returns:
        False if the training ended before the signal, or has no checkpoint.
    """
    before = newest(run)
    while after_checkpoint and newest(run) == before and process.poll() is None:
        time.sleep(0.02)
    time.sleep(delay)
    last = newest(run)
    if process.poll() is not None or last is None:
        return False
    if after_checkpoint:
        tally.lost_seconds.append(time.time() - last.stat().st_mtime)
    began = time.monotonic()
    process.send_signal(number)
    process.wait()
    tally.ending_seconds.append(time.monotonic() - began)
    tally.codes.add(process.returncode)
    return True


def resumed_at(stderr: str) -> int:
    """Read the step at which a training resumed."""
    found = re.search(r"resuming at step (\d+) of", stderr)
    return int(found[1]) if found else 0


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Read a finished run's weights."""
    return checkpoint.shipped(checkpoint.load_last(run)[1])


def try_signal(
    number: signal.Signals, split: Path, run: Path, given: argparse.Namespace, expected: Path
) -> Tally:
    """Interrupt one training again and again, then let it end."""
    tally = Tally(number.name)
    chance = random.Random(given.seed)
    for turn in range(given.terms if number == signal.SIGTERM else given.kills):
        process = start(split, run, given)
        counted = turn % 2 == 0
        delay = chance.uniform(*((0, given.latest) if counted else (0.5, START_SECONDS)))
        if not interrupt(process, run, number, delay, tally, after_checkpoint=counted):
            raise SystemExit(f"{number.name}: the training ended too soon; increase --epochs")
        _, stderr = process.communicate()
        if turn and "resuming" in stderr:  # the signal can come before this line is logged
            tally.resumed_at.append(resumed_at(stderr))
    process = start(split, run, given)
    _, stderr = process.communicate()
    tally.resumed_at.append(resumed_at(stderr))
    ours, theirs = weights(run), weights(expected)
    tally.equal = all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return tally


def is_good(tally: Tally, number: signal.Signals, given: argparse.Namespace) -> bool:
    """Tell whether weights, resumption, lost time, stopping time and exit codes are right."""
    codes = {75} if number == signal.SIGTERM else {-number}
    return (
        tally.equal
        and min(tally.resumed_at) > 0
        and max(tally.lost_seconds) <= given.checkpoint_seconds + SAVE_SECONDS
        and max(tally.ending_seconds) <= 3
        and tally.codes == codes
    )


def main() -> int:
    """Train, interrupt, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, default=DEMO_MUSIC)
    parser.add_argument("--model", default="shufflenet_v2_x0_5")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--checkpoint-seconds", type=float, default=2.0)
    parser.add_argument(
        "--latest",
        type=float,
        default=2.2,
        help="latest time of a signal, in seconds after a checkpoint",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        split = prepare(given.audio, Path(scratch) / "store")
        expected = Path(scratch) / "uninterrupted"
        began = time.monotonic()
        start(split, expected, given).communicate()
        print(
            f"uninterrupted: {time.monotonic() - began:.0f} s, torch {torch.__version__}, "
            f"{given.device}, a checkpoint every {given.checkpoint_seconds} s"
        )
        print(
            f"{'signal':8} {'times':>5} {'resumed at steps':>17} {'lost s':>7} {'ends in s':>9} "
            f"{'exit':>5}  weights"
        )
        good = True
        for number in (signal.SIGKILL, signal.SIGTERM):
            tally = try_signal(number, split, Path(scratch) / number.name, given, expected)
            steps = f"{min(tally.resumed_at)} to {max(tally.resumed_at)}"
            print(
                f"{tally.name:8} {len(tally.ending_seconds):5} {steps:>17} "
                f"{max(tally.lost_seconds):7.1f} {max(tally.ending_seconds):9.2f} "
                f"{max(tally.codes):5}  {'equal' if tally.equal else 'DIFFERENT'}",
                flush=True,
            )
            good = is_good(tally, number, given) and good
        return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
