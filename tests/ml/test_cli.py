"""The command line: output for Airflow, the first program's commands, help and errors.

`python tests/ml/test_cli.py --write` writes docs/cli.md.
"""

import contextlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
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
from music_genre.cli.progress import shown_progress
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
    assert min(seconds) < 1.0  # 0.2 s on an idle machine; importing torch takes 3 s


def test_a_crash_is_told_from_bad_input() -> None:
    """Exit 65 would mean wrong input and no retry. A task that ran out of memory can be retried."""
    program = (
        "import sys\nfrom music_genre import __main__\nfrom music_genre.audio import catalogue\n"
        "def crash(*_, **__): raise MemoryError('no memory')\n"
        "catalogue.scan = crash\nsys.argv[1:] = ['scan', '--audio', '.']\n__main__.main()"
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
        "check",
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
    # Fewer epochs than the first program's default. Options can have underscores for hyphens.
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
    assert other.code == 65
    assert "was started with epochs 1, not 2" in other.error
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
    assert refused.code == 65
    assert "1 of 1 files could not be used" in refused.error


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
    assert outcome.stderr == "error: stopped by SIGTERM; run the same command again to continue\n"


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("nonsense", 64, "No such command 'nonsense'. See: music-genre --help"),
        ("scan", 64, "Give either --audio or --pictures. See: music-genre scan --help"),
        ("train --split x --optimizer sgdd", 64, "is not one of"),
        ("train --split x --epochs 0", 64, "not in the range x>=1"),
        ("extract --catalogue x --shard 5/4", 64, "'5/4' is not a valid part"),
        ("scan --audio nowhere", 65, "nowhere: no such folder"),
        ("scan --audio s3://bucket/x", 65, "s3://bucket/x: only local folders can be read"),
        (
            "extract --catalogue nowhere",
            65,
            "contains no catalogue.json; give the address that scan",
        ),
        ("split --catalogue nowhere --images nowhere", 65, "contains no catalogue.json"),
        (
            "split --catalogue x --images x --test 0.9 --validation 0.2",
            65,
            "their sum must be below 1",
        ),
        (
            "train --split nowhere",
            65,
            "contains no split.json; give the address that split printed",
        ),
        ("evaluate --run=", 64, "is empty; give a path (the previous task may have no result)"),
        ("evaluate --run nowhere", 65, "contains no settings.json; give the address that train"),
        ("predict --run nowhere x.wav", 65, "contains no settings.json"),
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
    assert outcome.code == 65
    assert "similar names: resnet18" in outcome.error


def test_with_standard_error_closed_nothing_is_printed_elsewhere(
    music: Path, project: Path
) -> None:
    """Under cron or in a daemon, standard error can be closed (2>&-)."""
    for audio, code in ((str(music), 0), ("nowhere", 65)):
        command = [sys.executable, "-m", "music_genre", "scan", "--audio", audio]
        words = shlex.join([*command, "--artifacts", str(project / "store")])
        ended = subprocess.run(
            ["sh", "-c", f"{words} 2>&-"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        assert ended.returncode == code
        assert ended.stdout.startswith('{"catalogue": ') if code == 0 else ended.stdout == ""


def test_a_seed_beyond_what_torch_takes_is_refused_with_its_limit(run: Run) -> None:
    refused = run("train", "--split", "x", "--seed", "9" * 30)
    assert refused.code == 64
    assert "0<=x<=9223372036854775807" in refused.error


def on_a_terminal(*words: str, answer: bytes = b"") -> tuple[int, str]:
    """Run a command on a terminal of 80 columns; returns its exit status and its output."""
    pid, terminal = pty.fork()
    if pid == 0:
        termios.tcsetwinsize(0, (24, 80))
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "music_genre", *words])
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the command has ended
        while chunk := os.read(terminal, 65536):
            shown += chunk
            if answer and b"epoch=1 " in shown:
                os.write(terminal, answer)
                answer = b""
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode()


def rows_of(shown: str) -> list[str]:
    """The lines that stay on a terminal: text after a carriage return overwrites the line."""
    return [line.split("\r")[-1] for line in shown.replace("\r\n", "\n").split("\n")]


def test_a_training_on_a_terminal_keeps_a_row_an_epoch_above_a_short_bar(
    prepared: Prepared, tmp_path: Path
) -> None:
    small = ["--model=shufflenet_v2_x0_5", "--epochs=3", "--crop-frames=32", "--device=cpu"]
    words = ["train", "--split", str(prepared.split), "--run", str(tmp_path / "run"), *small]
    code, shown = on_a_terminal(*words)
    assert code == 0, shown
    rows = rows_of(shown)
    assert [row.split()[0] for row in rows if row.startswith("epoch=")] == [
        *("epoch=1", "epoch=2", "epoch=3")
    ]
    bars = [part for part in re.split(r"[\r\n]", shown) if part.startswith("train: ")]
    assert bars
    assert max(map(len, bars)) < 80
    assert rows[-2].startswith('{"validation_accuracy": ')


def test_ctrl_c_saves_and_ends_by_sigint_so_that_a_shells_loop_ends(
    prepared: Prepared, tmp_path: Path
) -> None:
    small = ["--model=shufflenet_v2_x0_5", "--epochs=500", "--crop-frames=32", "--device=cpu"]
    words = ["train", "--split", str(prepared.split), "--run", str(tmp_path / "run"), *small]
    code, shown = on_a_terminal(*words, answer=b"\x03")
    assert code == -signal.SIGINT, shown
    assert "error: stopped by SIGINT at step " in shown
    assert list((tmp_path / "run").glob("checkpoint-*.pt"))


CHECK = ("--data", "{audio}", "--models", "resnet18, vgg11", "--epochs", "3")


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        ((), 0, ""),
        (("--models", "resnet18,resnt18"), 65, "model resnt18: torchvision has no such model;"),
        (("--models", "zzz"), 65, "similar names: resnet18"),
        (("--epochs", "0"), 64, "not in the range x>=1"),
        (("--learning-rate", "nan"), 65, "not a finite number"),
        (("--data", "nowhere"), 65, "nowhere: no such folder"),
        (("--revision", "v1"), 65, "a folder has no revision v1"),
        (("--data", "dvc:demo/genres"), 65, "needs a repository and its remote"),
    ],
)
def test_what_no_run_could_work_with_is_refused_before_any_work(
    prepared: Prepared, tmp_path: Path, run: Run, wrong: tuple[str, ...], code: int, message: str
) -> None:
    words = [word.format(audio=prepared.audio) for word in CHECK]
    outcome = run("check", *words, "--artifacts", tmp_path, *wrong)
    assert outcome.code == code
    assert message in (outcome.error if code else "")
    assert list(tmp_path.iterdir()) == []


def test_checking_loads_no_torch(prepared: Prepared, project: Path) -> None:
    """`check` also runs on workers without torch."""
    program = (
        "import sys; sys.modules['torch'] = None;"
        "from music_genre.cli import commands; commands(sys.argv[1:])"
    )
    words = [word.format(audio=prepared.audio) for word in CHECK]
    assert python("-c", program, "check", *words).returncode == 0


def test_the_split_does_not_depend_on_the_trainings_seed(
    prepared: Prepared, tmp_path: Path, run: Run
) -> None:
    """Two runs with different seeds are measured on the same test set."""
    dealt = []
    for number, seeds in enumerate((("--seed=1",), ("--seed=2",), ("--split-seed=1",))):
        options = ["--images_path", prepared.images, "--checkpoints_path", tmp_path / str(number)]
        small = ["--model=shufflenet_v2_x0_5", "--epochs=1", "--crop-frames=32"]
        result = run("train-using-image-features", *options, *small, *seeds, "--device=cpu").result
        dealt.append((Path(result["split"]) / "split.csv").read_text())
    assert dealt[0] == dealt[1] != dealt[2]


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


def test_a_log_says_how_far_a_long_epoch_is_and_not_a_short_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    times = iter((0, 20, 25, 50, 56, 56))
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    caplog.set_level("INFO")
    with shown_progress("train", every=30) as progress:
        for done, note in ((5, ""), (6, "epoch=1"), (9, ""), (10, "")):
            progress(done, 12, note)
    assert caplog.messages == ["epoch=1", "train: 10 of 12"]
