"""Show that a refactoring changed nothing: run two commits side by side and compare their output.

    make same BASE=main~1

Both sides scan, draw, split, train the small model for two epochs and evaluate it on the demo
music, in the same environment. Every file that they write is compared. The rendered Compose files
are compared too.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
MUSIC = REPOSITORY / "deploy" / "demo_music" / "genres_original"
VARYING = {"": {"images_per_second", "scanned_at", "seconds"}, "metrics.json": {"key"}}
"""File name (empty: any file) → names of the values that differ from run to run: times, speeds, and
the key that is derived from the checkpoint's name."""
OF_A_PROCESS = frozenset({".lock"})
"""Files that describe the process that made a folder, not its results."""
CHECKPOINT = re.compile(r"(checkpoint-\d+)\.[0-9a-f]{32}\.pt")
"""A checkpoint's name has a hash of its bytes, which include speeds. `same` ignores the hash."""
MUST_BE_THERE = frozenset({".png", ".csv", ".json", ".pt"})
COMPOSE_FILES = ("docker-compose.yml", "deploy/compose/gpu.yml")


class RefusedError(Exception):
    """The comparison cannot be made."""


def make(tree: Path, store: Path) -> None:
    """Run every stage with the code in `tree`; the stages write to the artifact folder `store`."""

    def stage(*words: object) -> dict[str, Any]:
        command = [sys.executable, "-m", "music_genre", *map(str, words)]
        # One thread, because both sides run at the same time and must add sums in the same order.
        variables = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True)
        if ended.returncode != 0:
            last = (ended.stderr.splitlines() or ["no word"])[-1]
            raise RefusedError(f"`music-genre {words[0]}` of {tree.name} failed: {last}")
        return dict(json.loads(ended.stdout.splitlines()[-1]))

    kept = ("--artifacts", store)
    catalogue = ("--catalogue", stage("scan", "--audio", MUSIC, *kept)["catalogue"], *kept)
    images = ("--images", stage("extract", *catalogue, "--workers", 1)["images"])
    split = ("--split", stage("split", *catalogue, *images)["split"], *kept)
    small = ("--model", "shufflenet_v2_x0_5", "--epochs", 2, "--device", "cpu")
    small += ("--checkpoint-seconds", 3600)  # one checkpoint only, at the end
    stage("evaluate", "--run", stage("train", *split, *small)["run"], "--device", "cpu")


def lasting(value: Any, file: str) -> Any:
    """Leave out the values that differ from run to run."""
    if isinstance(value, dict):
        varying = VARYING[""] | VARYING.get(file, set())
        return {name: lasting(each, file) for name, each in value.items() if name not in varying}
    if isinstance(value, list):
        return [lasting(each, file) for each in value]
    return value


def parse_json(path: Path, store: Path) -> Any:
    text = CHECKPOINT.sub(r"\1.pt", path.read_text().replace(str(store), ""))
    return lasting(json.loads(text), path.name)


def parse_csv(path: Path, store: Path) -> Any:
    with path.open(newline="") as file:
        return lasting(list(csv.DictReader(file)), path.name)


def parse_picture(path: Path, store: Path) -> Any:
    with Image.open(path) as image:
        return {"mode": image.mode, "pixels": np.asarray(image)}


def parse_checkpoint(path: Path, store: Path) -> Any:
    return lasting(torch.load(path, map_location="cpu", weights_only=True), path.name)


PARSERS: dict[str, Callable[[Path, Path], Any]] = {
    ".json": parse_json,
    ".csv": parse_csv,
    ".png": parse_picture,
    ".pt": parse_checkpoint,
}


def leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield every number, text and array of a nested value with its place."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value, start=1)
        for name, each in items:
            yield from leaves(each, f"{where} {name}")
    else:
        yield where, value


def differences(base: Any, head: Any, where: str) -> list[str]:
    """Name each place where two nested values differ."""
    theirs, ours = dict(leaves(base, where)), dict(leaves(head, where))
    found = [f"{place}: only in base" for place in theirs.keys() - ours.keys()]
    found += [f"{place}: only in head" for place in ours.keys() - theirs.keys()]
    for place in theirs.keys() & ours.keys():
        if told := difference(theirs[place], ours[place]):
            found.append(f"{place}: {told}")
    return sorted(found)


def difference(base: Any, head: Any) -> str:
    """Say how two numbers, texts or arrays differ; returns an empty string if they are equal."""
    if type(base) is not type(head):
        return f"{type(base).__name__}, now {type(head).__name__}"
    if isinstance(base, torch.Tensor | np.ndarray):
        return array_difference(np.asarray(base), np.asarray(head))
    return "" if base == head else f"{base!r:.60}, now {head!r:.60}"


def array_difference(base: np.ndarray, head: np.ndarray) -> str:
    if (base.dtype, base.shape) != (head.dtype, head.shape):
        return f"{base.dtype} {base.shape}, now {head.dtype} {head.shape}"
    bits = f"V{base.dtype.itemsize}"  # compare bits: NaN equals itself, and -0.0 is not 0.0
    differing = base.reshape(-1).view(bits) != head.reshape(-1).view(bits)
    if not differing.any():
        return ""
    first = tuple(map(int, np.unravel_index(differing.argmax(), base.shape)))
    return f"{differing.sum()} of {base.size} values differ, the first at {first}"


def files_of(store: Path) -> dict[str, Path]:
    """The files of an artifact folder by relative path; checkpoints are named by step alone."""
    return {
        CHECKPOINT.sub(r"\1.pt", str(path.relative_to(store))): path
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name not in OF_A_PROCESS
    }


def compare(base: Path, head: Path) -> tuple[list[str], Counter[str]]:
    """Compare two artifact folders; returns what differs, and how many files of each kind agree."""
    ours, theirs = files_of(head), files_of(base)
    found, counts = [], Counter[str]()
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs:
            found.append(f"{name}: only in {'head' if name in ours else 'base'}")
            continue
        parse = PARSERS.get(Path(name).suffix, lambda path, _store: path.read_bytes())
        here = differences(parse(theirs[name], base), parse(ours[name], head), name)
        found += here
        counts[Path(name).suffix] += not here
    found += [f"no {kind} file was made" for kind in sorted(MUST_BE_THERE - counts.keys())]
    return found, counts


def rendered_compose(tree: Path) -> Any:
    """The tree's Compose files, rendered by Compose with only the secrets set."""
    text = "".join((tree / name).read_text() for name in COMPOSE_FILES)
    secrets = {name: f"the-{name}" for name in re.findall(r"\$\{(\w+):\?", text)}
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    files = [word for name in COMPOSE_FILES for word in ("-f", name)]
    command = ["docker", "compose", *files, "--profile", "*", "config", "--format", "json"]
    ended = subprocess.run(command, cwd=tree, capture_output=True, text=True, env=kept | secrets)
    if ended.returncode != 0:
        raise RefusedError(f"Compose does not render {tree.name}: {ended.stderr.strip()}")
    return json.loads(ended.stdout.replace(str(tree), "."))


def git(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True)


def unpack(commit: str, folder: Path) -> None:
    folder.mkdir()
    archive = subprocess.Popen(["git", "archive", commit], cwd=REPOSITORY, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(folder)], stdin=archive.stdout, check=True)
    archive.communicate()


def check(base: str) -> None:
    """Refuse a BASE that is no commit, and a working tree with changes."""
    if git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}").returncode != 0:
        raise RefusedError(f"BASE={base} is no commit here; name one, as in BASE=main~1")
    if changed := git("status", "--porcelain").stdout.decode().splitlines():
        raise RefusedError(
            f"the working tree has changes ({changed[0].strip()}); commit or stash them first"
        )


def run(base: str) -> list[str]:
    """Compare HEAD with a commit; returns what differs."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trees, stores = (
            [folder / f"{side}{end}" for side in ("base", "head")] for end in ("", "-store")
        )
        for commit, tree in zip((base, "HEAD"), trees, strict=True):
            unpack(commit, tree)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(make, trees, stores))
        found, counts = compare(*stores)
        print(", ".join(f"{n} {kind} files" for kind, n in sorted(counts.items())) + " equal")
        if shutil.which("docker") is None:
            print("compose file: not compared, for docker is not installed")
        else:
            found += differences(*map(rendered_compose, trees), "compose file:")
        return found


def main(words: list[str]) -> int:
    began = time.monotonic()
    (base,) = words
    try:
        check(base)
        found = run(base)
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(found) if found else f"HEAD computes what {base} did", end="")
    print(f" ({time.monotonic() - began:.0f} s)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
