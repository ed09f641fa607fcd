"""Fixtures for a real GPU: a small data set, and the command line in real processes.

Needs torch 2.11 or later with torchvision, the decoders of `.venv/ml` (soundfile, soxr), click,
Pillow and scipy. Needs no network and none of this repository's lock files.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
REPOSITORY = Path(__file__).resolve().parents[2]
DEMO_MUSIC = REPOSITORY / "deploy" / "demo_music" / "genres_original"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU is visible to torch"))


def pytest_report_header() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no NVIDIA GPU"
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def environment(**variables: str) -> dict[str, str]:
    """This process's environment, with the repository first on PYTHONPATH."""
    path = [str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))} | variables


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        assert self.code == 0, self.stderr
        return json.loads(self.stdout.splitlines()[-1])


def start(*words: object, **variables: str) -> subprocess.Popen[str]:
    """Start `music-genre` with these arguments."""
    return subprocess.Popen(
        [sys.executable, "-m", "music_genre", *map(str, words)],
        env=environment(**variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    stdout, stderr = process.communicate(timeout=200)
    return Outcome(process.returncode, stdout, stderr)


def music_genre(*words: object, **variables: str) -> Outcome:
    return finish(start(*words, **variables))


@pytest.fixture(scope="session")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A split of the demo music, with its images."""
    store = ["--artifacts", tmp_path_factory.mktemp("artifacts")]
    catalogue = music_genre("scan", "--audio", DEMO_MUSIC, *store).result["catalogue"]
    drawn = ["--catalogue", catalogue, *store]
    images = music_genre("extract", *drawn).result["images"]
    return Path(music_genre("split", *drawn, "--images", images).result["split"])
