"""Each import rule holds, and each violation is reported."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("music_genre", "fleet", "deploy", "dags")


def lint(folder: Path) -> subprocess.CompletedProcess:
    linter = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([linter, "--no-cache"], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path) -> Path:
    for package in PACKAGES:
        shutil.copytree(
            REPOSITORY / package,
            tmp_path / package,
            ignore=shutil.ignore_patterns("__pycache__", "demo_music"),
        )
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_all_rules_hold():
    result = lint(REPOSITORY)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("music_genre/evaluation/metrics.py", "import music_genre.cli.stages", "stands in wings"),
        (
            "music_genre/training/loop.py",
            "import music_genre.evaluation.metrics",
            "stands in wings",
        ),
        ("music_genre/features/spool.py", "import airflow", "knows nothing of Airflow"),
        ("music_genre/audio/catalogue.py", "import fleet.contract", "knows nothing of Airflow"),
        ("music_genre/training/loop.py", "import click", "only the command line speaks click"),
        ("music_genre/dataset/split.py", "import dvc.api", "only versioning speaks DVC"),
        ("dags/music_genre_training.py", "import music_genre.config", "lists of commands"),
        ("dags/music_genre_training.py", "import torch", "lists of commands"),
        ("fleet/operators/command.py", "import torch", "fleet moves no tensors"),
        ("fleet/workers/worker.py", "import music_genre.config", "fleet moves no tensors"),
        (
            "fleet/operators/outcome.py",
            "import fleet.operators.docker",
            "operators stand in layers",
        ),
        ("fleet/contract.py", "import psutil", "shares with fleet imports no package"),
        ("fleet/kernel.py", "import celery", "shares with fleet imports no package"),
        ("fleet/contract.py", "import fleet.workers.gpus", "fleet stands in wings"),
        ("deploy/embedded/stack.py", "import fleet.operators", "deploy is plain Python"),
        ("deploy/embedded/stack.py", "import fleet.__main__", "deploy is plain Python"),
        ("deploy/embedded/stack.py", "import deploy.containers.engine", "know nothing of"),
        ("music_genre/cli/group.py", "import git", "only versioning speaks DVC"),
        ("deploy/demo.py", "import airflow", "deploy is plain Python"),
    ],
)
def test_a_broken_rule_is_named(copy, file, line, rule):
    path = copy / file
    path.write_text(path.read_text() + f"\n\ndef late() -> None:\n    {line}\n")
    result = lint(copy)
    broken = [line for line in result.stdout.splitlines() if " BROKEN" in line]
    assert result.returncode == 1, result.stdout
    assert any(rule in line for line in broken), broken


def test_a_module_without_a_floor_is_refused(copy):
    (copy / "music_genre" / "attic.py").write_text("")
    result = lint(copy)
    assert result.returncode == 1
    assert "attic" in result.stdout
