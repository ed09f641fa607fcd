"""Compare our feature extraction with librosa's: CPU time and memory of whole processes.

Run it as `.venv/ml/bin/python benchmarks/features.py`. It makes its music from
deploy/demo_music, checks that our images and librosa's agree, and then prints one table.
"""

import argparse
import datetime
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

HERE = Path(__file__).resolve().parent
DEMO_MUSIC = HERE.parent / "deploy" / "demo_music" / "genres_original"
SAMPLE_RATE = 22_050
N_SAMPLES = 30 * SAMPLE_RATE
N_SONGS = 40
"""Number of clips that the tracks are made from."""
ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA", "BLIS")
}
"""Limits each pipeline to one BLAS thread: more would cost CPU time and make no pipeline faster."""


@dataclass(frozen=True)
class Cost:
    """The time and memory that a process and its children used."""

    cpu: float
    """Seconds of user and system time."""
    wall: float
    """Elapsed seconds."""
    rss: float
    """Peak of the largest process, in MiB."""
    pss: float
    """Peak of all processes together, in MiB; shared pages count once."""

    def __add__(self, other: "Cost") -> "Cost":
        most_rss, most_pss = max(self.rss, other.rss), max(self.pss, other.pss)
        return Cost(self.cpu + other.cpu, self.wall + other.wall, most_rss, most_pss)


def measure(*command: str | Path) -> Cost:
    """Run a command until it ends; returns its cost."""
    began = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, **ONE_THREAD},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    memory = Memory()
    watch = threading.Thread(target=memory.watch, args=(process.pid,), daemon=True)
    watch.start()
    said = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    watch.join()
    if process.returncode:
        raise SystemExit(f"{command}: exit code {process.returncode}\n{said.decode()}")
    return Cost(usage.ru_utime + usage.ru_stime, wall, memory.rss, memory.pss)


class Memory:
    """The memory of a process tree, sampled often at first, later twice a second.

    Samples are few because sampling takes CPU time from the measured processes. ru_maxrss would be
    wrong: in a child it starts at this program's own peak.
    """

    rss = pss = 0.0

    def watch(self, pid: int) -> None:
        """Record the peaks, in MiB, until the process ends."""
        began = time.monotonic()
        while Path("/proc", str(pid), "smaps_rollup").exists():
            try:
                processes = [Path("/proc", str(each)) for each in tree(pid)]
                pss = sum(kilobytes(each / "smaps_rollup", "Pss:") for each in processes)
                rss = max(kilobytes(each / "status", "VmHWM:") for each in processes)
            except OSError:  # a process ended while it was being read: read all again
                continue
            self.rss, self.pss = max(self.rss, rss / 1024), max(self.pss, pss / 1024)
            time.sleep(0.05 if time.monotonic() < began + 1 else 0.5)


def kilobytes(file: Path, name: str) -> int:
    """Read a number of kB from a file in /proc; 0 if the line is missing, as for a zombie."""
    found = [line for line in file.read_text().splitlines() if line.startswith(name)]
    return int(found[0].split()[1]) if found else 0


def tree(pid: int) -> Iterator[int]:
    """Yield a process and all its descendants."""
    yield pid
    for child in Path("/proc", str(pid), "task", str(pid), "children").read_text().split():
        yield from tree(int(child))


def songs() -> list[np.ndarray]:
    """Decode demo clips; repeat each until it fills 30 s, (n_samples,) int16."""
    clips = sorted(DEMO_MUSIC.rglob("*.ogg"))
    chosen = clips[:: max(1, len(clips) // N_SONGS)][:N_SONGS]
    return [np.resize(soundfile.read(clip, dtype="int16")[0], N_SAMPLES) for clip in chosen]


def make_music(folder: Path, n_tracks: int) -> None:
    """Write n_tracks tracks as WAV and as Ogg, and two more WAV files: of 30 s and of two hours."""
    music = songs()
    for number in range(n_tracks):
        song, genre = music[number % len(music)], f"genre{number % 10}"
        for suffix in ("wav", "ogg"):
            (folder / suffix / genre).mkdir(parents=True, exist_ok=True)
        name = f"{genre}/{number:05}"
        shifted = np.roll(song, number * SAMPLE_RATE // 3)
        soundfile.write(folder / "wav" / f"{name}.wav", shifted, SAMPLE_RATE, subtype="PCM_16")
        encoded = folder / "ogg" / f"{name}.ogg"
        if number < len(music):
            soundfile.write(encoded, song, SAMPLE_RATE)
        else:  # copied, because encoding would take longer than all measurements
            (first,) = (folder / "ogg").glob(f"*/{number % len(music):05}.ogg")
            shutil.copy(first, encoded)
    for name, n_songs in (("one", 1), ("two_hours", 240)):
        (folder / name / "genre").mkdir(parents=True)
        path = folder / name / "genre" / "track.wav"
        with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
            for number in range(n_songs):
                file.write(music[number % len(music)])


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """Make a folder; remove it at the end of the `with` block."""
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def ours(audio: Path, store: Path) -> tuple[Cost, Cost]:
    """Scan and extract; returns the cost of each."""
    program = [sys.executable, "-m", "music_genre"]
    scanned = measure(*program, "scan", "--audio", audio, "--artifacts", store)
    (catalogue,) = (store / "catalogues").iterdir()
    extract: list[str | Path] = [
        *program,
        "extract",
        "--catalogue",
        catalogue,
        "--artifacts",
        store,
    ]
    return scanned, measure(*extract)


def rival(name: str, audio: Path, output: Path) -> Cost:
    """Run one of the scripts in rivals/."""
    return measure(sys.executable, HERE / "rivals" / f"{name}.py", audio, output)


def check_agreement(audio: Path, folder: Path) -> str:
    """Compare our images with librosa's.

    This also does all one-time compiling and loading, so that no measured run includes it.

    Returns:
        How well the images agree, in words.
    """
    rival("librosa_matplotlib", audio, folder)
    with emptied(folder / "theirs") as theirs, emptied(folder / "ours") as store:
        rival("librosa_pillow", audio, theirs)
        ours(audio, store)
        apart = []
        for path in sorted(store.rglob("*.png")):
            pixels = np.asarray(Image.open(path)).astype(int)
            expected = np.asarray(Image.open(theirs / f"{path.name.split('.')[0]}.png"))
            apart.append(np.abs(pixels - expected))
    worst, equal = (
        max(each.max() for each in apart),
        np.mean([np.mean(each == 0) for each in apart]),
    )
    if worst > 1 or equal < 0.9999:
        raise SystemExit(
            f"images differ from librosa's by up to {worst} levels; {equal:.4%} of pixels are equal"
        )
    return f"{len(apart)} images: {equal:.4%} of pixels equal to librosa's, the rest 1 level apart"


def one_round(audio: Path, folder: Path) -> dict[str, Cost]:
    """Run every pipeline once."""
    with emptied(folder / "ours") as store:
        scanned, extracted = ours(audio, store)
    costs = {"music-genre extract": extracted, "music-genre scan + extract": scanned + extracted}
    for name in ("librosa_pillow", "librosa_matplotlib"):
        with emptied(folder / "theirs") as output:
            costs[name.replace("_", " + ")] = rival(name, audio, output)
    return {**costs, "decode alone (soundfile)": rival("decode", audio, folder)}


def compare(audio: Path, folder: Path, n_tracks: int, n_rounds: int) -> None:
    """Print one row per pipeline, for one audio format.

    A row shows the round with the least CPU time, because noise only adds to the cost.
    """
    rounds = [one_round(audio, folder) for _ in range(n_rounds)]
    costs = {
        name: min((each[name] for each in rounds), key=lambda cost: cost.cpu) for name in rounds[0]
    }
    extracted = costs["music-genre extract"]
    decoding = costs["decode alone (soundfile)"].cpu
    for name, cost in costs.items():
        drawn, ours_drawn = cost.cpu - decoding, extracted.cpu - decoding
        print(
            f"{audio.name:4} {name:27} {cost.cpu / n_tracks * 1e3:8.2f} "
            f"{cost.cpu / extracted.cpu:6.1f} {drawn / n_tracks * 1e3:9.2f} "
            f"{drawn / ours_drawn:6.1f} {cost.wall:7.1f} {cost.rss:8.0f} {cost.pss:8.0f}"
        )


def main() -> None:
    """Make the music, check that the images agree, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--tracks", type=int, default=1_000, help="number of tracks of 30 s (default: 1000)"
    )
    parser.add_argument(
        "--rounds", type=int, default=1, help="rounds; the least CPU time counts (default: 1)"
    )
    parser.add_argument(
        "--folder", help="folder for some gigabytes of scratch files (default: $TMPDIR)"
    )
    options = parser.parse_args()
    versions = [f"{name} {version(name)}" for name in ("numpy", "scipy", "librosa", "matplotlib")]
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    print(f"{datetime.date.today()}, {cpu[0].split(': ')[1]}, {os.cpu_count()} cores, ", end="")
    print(f"Python {platform.python_version()}, {', '.join(versions)}")
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        with emptied(folder / "few") as few:
            make_music(few, 20)
            print(check_agreement(few / "wav", folder))
        make_music(folder, options.tracks)
        print(f"{options.tracks} tracks of 30 s, whole processes, best of {options.rounds}:")
        for line in (
            ("CPU ms", "", "less", "", "wall", "largest", "all"),
            ("a track", "times", "decoding", "times", "s", "MiB RSS", "MiB PSS"),
        ):
            print("{:32} {:>8} {:>6} {:>9} {:>6} {:>7} {:>8} {:>8}".format("", *line))
        for suffix in ("wav", "ogg"):
            compare(folder / suffix, folder, options.tracks, options.rounds)
        for name in ("one", "two_hours"):
            with emptied(folder / "ours") as store:
                _, cost = ours(folder / name, store)
            print(
                f"extract {name.replace('_', ' ')}: {cost.wall:.2f} s wall, {cost.cpu:.2f} s CPU, "
                f"{cost.rss:.0f} MiB RSS, {cost.pss:.0f} MiB PSS of all processes"
            )


if __name__ == "__main__":
    main()
