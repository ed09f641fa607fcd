"""The command line: its contract with Airflow, the seed's command lines, its help and its errors.

Run as a program with --write, it writes docs/cli.md.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import click
import numpy as np
import pytest
from conftest import Prepared, Run, contents, write_music
from PIL import Image

from music_genre import __version__
from music_genre.cli import commands
from music_genre.config import TrainConfig

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "cli.md"
FAST = ["--model", "shufflenet_v2_x0_5", "--epochs", "1", "--crop-frames", "64"]


def reference() -> str:
    """Render the command-line reference from the commands themselves."""
    parts = ["# `music-genre`\n", "Written by `python tests/ml/test_cli.py --write`.\n"]
    parent = click.Context(
        commands, info_name="music-genre", terminal_width=100, help_option_names=["-h", "--help"]
    )
    parts.append(f"```\n{commands.get_help(parent)}\n```\n")
    for name, command in commands.commands.items():
        context = click.Context(command, info_name=name, parent=parent, terminal_width=100)
        parts.append(f"## {name}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def test_the_reference_is_up_to_date() -> None:
    assert REFERENCE.read_text("utf-8") == reference(), f"run python {Path(__file__)} --write"


def test_every_command_and_option_has_help() -> None:
    for name, command in commands.commands.items():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.name}"


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_help_loads_nothing_heavy_and_is_quick() -> None:
    program = (
        "import sys\nfrom music_genre.cli import commands\n"
        "for name in ['', *commands.commands]:\n"
        "    commands([*name.split(), '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'scipy', 'soundfile', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    outcome = python("-c", program)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("Usage: ") == 1 + len(commands.commands)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        assert python("-m", "music_genre", "-h").returncode == 0
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.4


def test_a_crash_is_told_from_bad_input() -> None:
    """Exit 1 would say that the input must be mended; a task that ran out of memory may retry."""
    program = (
        "import sys\nfrom music_genre import __main__, audio\n"
        "def crash(*_, **__): raise MemoryError('no memory')\n"
        "audio.scan = crash\nsys.argv[1:] = ['scan', '--audio', '.']\n__main__.main()"
    )
    outcome = python("-c", program)
    assert outcome.returncode == 70
    assert "MemoryError: no memory" in outcome.stderr


def test_extract_loads_no_torch(prepared: Prepared, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom music_genre.cli import commands\n"
        "commands(sys.argv[1:], standalone_mode=False)\n"
        "sys.exit(sorted({'torch', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    places = ["--catalogue", str(prepared.catalogue), "--artifacts", str(tmp_path)]
    outcome = python("-c", program, "extract", *places)
    assert outcome.returncode == 0, outcome.stderr


def test_commands_are_listed_in_the_order_of_the_data_flow(run: Run) -> None:
    assert list(commands.commands) == [
        "fetch",
        "pull",
        "scan",
        "extract",
        "split",
        "train",
        "evaluate",
        "publish",
        "predict",
        "device",
        "create-image-features-from-audio",
        "train-using-image-features",
    ]
    assert run("--version").stdout == f"music-genre, version {__version__}\n"


def test_from_audio_to_metrics_by_addresses_alone(music: Path, tmp_path: Path, run: Run) -> None:
    store = tmp_path / "store"
    for reused in (False, True):
        before = contents(store)
        scanned = run("scan", "--audio", music, "--artifacts", store).result
        assert (scanned["n_tracks"], scanned["n_rejected"]) == (15, 0)
        assert scanned["genres"] == {"bass": 5, "lead": 5, "noise": 5}
        catalogue = scanned["catalogue"]
        parts = [
            run("extract", "--catalogue", catalogue, "--artifacts", store, "--shard", f"{i}/2")
            for i in (1, 2)
        ]
        assert sum(part.result["n_reused" if reused else "n_extracted"] for part in parts) == 15
        images = parts[0].result["images"]
        dealt = run(
            "split", "--catalogue", catalogue, "--images", images, "--artifacts", store
        ).result
        assert [dealt[name] for name in ("train", "validation", "test")] == [9, 3, 3]
        trained = run("train", "--split", dealt["split"], "--artifacts", store, *FAST).result
        assert {"device", "device_name", "steps", "images_per_second"} <= trained.keys()
        measured = run("evaluate", "--run", trained["run"]).result
        assert json.loads(Path(measured["metrics"]).read_text())["n_tracks"] == 3
        results = [scanned, *(part.result for part in parts), dealt, trained, measured]
        assert {result["reused"] for result in results} == {reused}
        if reused:
            assert contents(store) == before


SEED_FEATURES = shlex.split(
    "create-image-features-from-audio"
    " --path_with_audios_dir Data/genres_original --path_to_image Image_data"
)
SEED_TRAINING = shlex.split(
    "train-using-image-features --model resnet18 --criterion cross_entropy --optimizer sdg"
    " --checkpoints_path checkpoints --images_path Image_data"
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my data v1.0"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_seeds_command_lines_work_verbatim(project: Path, run: Run) -> None:
    write_music(project / "Data" / "genres_original", seconds=4.0)
    (project / "Data" / "genres_original" / "bass" / "bad.wav").write_text("no audio")
    features = run(*SEED_FEATURES)
    assert features.code == 0
    assert (features.result["n_extracted"], features.result["n_rejected"]) == (15, 1)
    image_data = project / "Image_data"
    assert len(list(image_data.glob("*/*.png"))) == 15
    assert "bass/bad.wav,not audio" in (image_data / "rejected.csv").read_text()
    assert {"catalogue.csv", "features.json"} <= {path.name for path in image_data.iterdir()}
    before = contents(image_data)
    assert run(*SEED_FEATURES).result["reused"] is True
    assert contents(image_data) == before
    # Fewer epochs than the default of the seed's line; and underscores where hyphens may stand.
    training = run(*SEED_TRAINING, "--epochs", "1", "--batch_size", "8")
    assert training.code == 0
    assert training.result["run"] == str(project / "checkpoints")
    assert list((project / "checkpoints").glob("checkpoint-*.pt"))
    assert (project / "checkpoints" / "evaluation" / "metrics.json").exists()
    settings = json.loads((project / "checkpoints" / "settings.json").read_text())
    assert settings["config"]["optimizer"] == "sgd"
    assert settings["config"]["criterion"] == "cross_entropy"
    again = run(*SEED_TRAINING, "--epochs", "1", "--batch-size", "8")
    assert again.result == {**training.result, "reused": True}
    other = run(*SEED_TRAINING, "--epochs", "2", "--batch-size", "8")
    assert other.code == 1
    assert "was begun with epochs 1, not 2" in other.error
    heard = run("predict", "--run", "checkpoints", "Data/genres_original/bass/bass.00000.wav")
    assert heard.code == 0


def test_the_seeds_defaults_are_those_of_train() -> None:
    defaults = [
        {p.name: p.default for p in commands.commands[name].params}
        for name in ("train", "train-using-image-features")
    ]
    settings = {field.name for field in fields(TrainConfig)} | {"device", "checkpoint_seconds"}
    for name in settings:
        assert defaults[0][name] == defaults[1][name]


def test_sdg_means_sgd_with_a_notice(
    prepared: Prepared, tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run("train", "--split", prepared.split, "--artifacts", tmp_path, *FAST, "--optimizer", "sdg")
    assert "--optimizer sdg is taken to mean sgd" in caplog.messages


def test_coloured_pictures_from_elsewhere_are_trained_on(project: Path, run: Run) -> None:
    random = np.random.default_rng(0)
    for genre, level in (("blues", 40), ("jazz", 200)):
        (project / "Image_data" / genre).mkdir(parents=True)
        for number in range(5):
            pixels = random.normal(level, 30, (288, 432, 4)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(project / "Image_data" / genre / f"{genre}{number}.png")
    trained = run(*SEED_TRAINING, *FAST)
    assert trained.code == 0
    assert trained.result["n_tracks"] == 2
    assert run(*SEED_TRAINING, *FAST).result["reused"] is True
    (project / "x.wav").write_bytes(b"RIFF")
    refused = run("predict", "--run", "checkpoints", "x.wav")
    assert refused.code == 1
    assert "was trained on pictures whose making is unknown" in refused.error


def test_a_signal_while_libraries_load_ends_in_one_line_and_75(prepared: Prepared) -> None:
    program = (
        "import signal, sys\nfrom music_genre.cli import commands\n"
        "class Loading:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'scipy': signal.raise_signal(signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Loading())\n"
        "commands(sys.argv[1:])"
    )
    outcome = python("-c", program, "train", "--split", str(prepared.split))
    assert outcome.returncode == 75
    assert outcome.stderr == "error: stopped by SIGTERM; run the same command again to go on\n"


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("nonsense", 2, "No such command 'nonsense'. See: music-genre --help"),
        ("scan", 2, "Missing option '--audio'. See: music-genre scan --help"),
        ("train --split x --optimizer sgdd", 2, "is not one of"),
        ("train --split x --epochs 0", 2, "not in the range x>=1"),
        ("extract --catalogue x --shard 5/4", 2, "'5/4' is no part of a whole"),
        ("scan --audio nowhere", 1, "nowhere: no such folder"),
        ("scan --audio s3://bucket/x", 1, "s3://bucket/x: only local folders can be read"),
        ("extract --catalogue nowhere", 1, "holds no catalogue.json; give the address that scan"),
        ("split --catalogue nowhere --images nowhere", 1, "holds no features.json"),
        ("split --catalogue x --images x --test 0.9 --validation 0.2", 1, "lower them"),
        ("train --split nowhere", 1, "holds no split.json; give the address that split printed"),
        ("evaluate --run nowhere", 1, "holds no settings.json; give the address that train"),
        ("predict --run nowhere x.wav", 1, "holds no settings.json"),
    ],
)
def test_an_error_is_one_line_and_its_code(
    project: Path, run: Run, line: str, code: int, message: str
) -> None:
    outcome = run(*line.split())
    assert outcome.code == code
    assert message in outcome.error
    assert outcome.stdout == ""


def test_an_unknown_model_is_refused(prepared: Prepared, tmp_path: Path, run: Run) -> None:
    outcome = run("train", "--split", prepared.split, "--artifacts", tmp_path, "--model", "resnt18")
    assert outcome.code == 1
    assert "near names: resnet18" in outcome.error


def test_a_full_disk_may_be_tried_again(
    music: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device", "/the/file")

    monkeypatch.setattr(os, "fsync", full)
    outcome = run("scan", "--audio", music, "--artifacts", tmp_path / "store")
    assert outcome.code == 75
    assert "/the/file: No space left on device" in outcome.error
    assert not any(path.is_file() for path in (tmp_path / "store").rglob("*"))


def test_the_store_may_come_from_the_environment(
    music: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSIC_GENRE_ARTIFACTS", str(tmp_path / "elsewhere"))
    assert run("scan", "--audio", music).result["catalogue"].startswith(str(tmp_path / "elsewhere"))


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    REFERENCE.write_text(reference(), "utf-8")
