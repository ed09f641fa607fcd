"""A small set of synthetic music, and the command line as its users see it."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from music_genre.cli import commands
from music_genre.store import signals

# The command line sets this too before it loads torch: waiting threads must not spin for long.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

SAMPLE_RATE = 22_050


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object that must be the last line of standard output."""
        return json.loads(self.stdout.splitlines()[-1])

    @property
    def error(self) -> str:
        """The single line that an error must have."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.stderr
        assert self.stderr.splitlines()[-1] == lines[0]
        return lines[0]


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengthen the grace: some tests stop trainings in this process, perhaps on a busy machine."""
    monkeypatch.setattr("music_genre.store.signals.GRACE", 120.0)


@pytest.fixture
def run() -> Iterator[Run]:
    """Run `music-genre` with these arguments, in this process."""
    handlers = {number: signal.getsignal(number) for number in signals.STOPPING}

    def call(*arguments: str | Path) -> Outcome:
        outcome = CliRunner().invoke(
            commands, [str(argument) for argument in arguments], prog_name="music-genre"
        )
        if outcome.exception and not isinstance(outcome.exception, SystemExit):
            raise outcome.exception
        return Outcome(outcome.exit_code, outcome.stdout, outcome.stderr)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def tone(genre: str, seed: int, seconds: float = 2.0) -> np.ndarray:
    """Make music whose genre even a small model can tell, from its register and its texture."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = {"bass": 110.0, "lead": 1760.0, "noise": 440.0}[genre] * random.uniform(0.9, 1.1)
    wave = 0.3 * np.sin(2 * np.pi * pitch * time)
    wave += random.normal(0, 0.2 if genre == "noise" else 0.002, len(time))
    return wave.astype(np.float32)


def write_music(folder: Path, n_tracks: int = 5, seconds: float = 2.0) -> Path:
    """Write n_tracks WAV files for each of three genres."""
    for number, genre in enumerate(("bass", "lead", "noise")):
        (folder / genre).mkdir(parents=True)
        for track in range(n_tracks):
            wave = tone(genre, 100 * number + track, seconds)
            soundfile.write(folder / genre / f"{genre}.{track:05}.wav", wave, SAMPLE_RATE)
    return folder


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """A folder of three genres with five tracks each."""
    return write_music(tmp_path / "music")


class Prepared(NamedTuple):
    """The outputs of all stages up to a split, made once per session."""

    audio: Path
    store: Path
    catalogue: Path
    images: Path
    split: Path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Three genres with five tracks each, scanned, extracted and split; do not change them."""
    from music_genre.audio import catalogue as audio
    from music_genre.config import FeatureConfig, SplitConfig
    from music_genre.dataset import split as dataset
    from music_genre.features import extraction as features

    root = tmp_path_factory.mktemp("prepared")
    store = root / "artifacts"
    music = write_music(root / "music")
    catalogue = Path(audio.scan(music, store)["catalogue"])
    images = Path(features.extract(catalogue, store, FeatureConfig(), n_workers=1)["images"])
    split = Path(dataset.split(catalogue, images, store, SplitConfig())["split"])
    return Prepared(music, store, catalogue, images, split)


@pytest.fixture(scope="session")
def trained(prepared: Prepared) -> Path:
    """A run that has learned the three genres, and its evaluation; tests must not change the files.

    Measured with three seeds: for 18 other tracks, the true genre had a probability of 0.73 or
    more, so rounding differences between CPUs change no prediction. The checkpoints are small,
    because tests copy and publish them.
    """
    from music_genre.config import Machine, TrainConfig
    from music_genre.evaluation import evaluation
    from music_genre.training import loop

    config = TrainConfig(
        model="shufflenet_v2_x0_5",
        epochs=45,
        learning_rate=0.005,
        batch_size=6,
        crop_frames=32,
        optimizer="adam",
    )
    result = loop.train(prepared.split, prepared.store, config, machine=Machine(device="cpu"))
    run = Path(result["run"])
    evaluation.evaluate(run, device_name="cpu")
    return run


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The modification time and the bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
