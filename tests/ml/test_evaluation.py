"""Evaluation folders and predictions of a trained run."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Prepared, contents
from PIL import Image

from music_genre.config import Machine
from music_genre.dataset.examples import Example
from music_genre.errors import InputError
from music_genre.evaluation import evaluation
from music_genre.model import checkpoint
from music_genre.store import runs
from music_genre.store.records import read_json, write_json
from music_genre.store.tables import read_table
from music_genre.training import loop

ROOT = Path(__file__).parents[2]


def test_the_figure_that_people_look_for_comes_first(trained: Path) -> None:
    """Airflow's page cuts a long line off at its right end."""
    assert next(iter(evaluation.evaluate(trained, device_name="cpu"))) == "accuracy"
    settings, split = runs.read_settings(trained)
    found = loop.train(split, trained.parents[1], settings.config, machine=Machine("cpu"))
    assert found["reused"]
    assert next(iter(found)) == "validation_accuracy"


@pytest.mark.parametrize("has_home", [True, False])
def test_fonts_are_kept_beside_the_runs_where_there_is_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_home: bool
) -> None:
    """Without a font cache, each evaluation on a read-only root searches all fonts, and warns."""
    monkeypatch.setenv("MPLCONFIGDIR", "is left as it was")
    monkeypatch.delenv("MPLCONFIGDIR")
    home = tmp_path if has_home else tmp_path / "gone"
    monkeypatch.setattr(Path, "home", lambda: home)
    evaluation._keep_fonts(tmp_path / "runs" / "a")
    wanted = None if has_home else str(tmp_path / "runs" / ".matplotlib")
    assert os.environ.get("MPLCONFIGDIR") == wanted


def test_metrics_agree_with_the_predictions(trained: Path) -> None:
    record = read_json(trained / "evaluation" / "metrics.json")
    assert record is not None
    rows = read_table(trained / "evaluation" / "predictions.csv")
    right = np.mean([row["genre"] == row["predicted"] for row in rows])
    assert record["accuracy"] == pytest.approx(right, abs=1e-3)
    assert record["n_tracks"] == record["n_groups"] == len(rows) == 3
    low, high = record["accuracy_interval"]
    assert low <= record["accuracy"] <= high
    assert np.sum(record["confusion"]) == 3
    for row in rows:
        values = [float(row[f"p_{genre}"]) for genre in ("bass", "lead", "noise")]
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert ("bass", "lead", "noise")[int(np.argmax(values))] == row["predicted"]


def test_it_learns_genres_that_differ(trained: Path) -> None:
    record = read_json(trained / "evaluation" / "metrics.json")
    assert record is not None
    assert record["accuracy"] == 1
    for genre in ("bass", "lead", "noise"):
        assert record["genres"][genre] == {"precision": 1, "recall": 1, "f1": 1}
    assert record["macro_f1"] == 1


def test_what_is_measured_changes_only_with_the_recipe() -> None:
    """If the digest changes, raise evaluation.RECIPE; else old results would pass for new ones."""
    random = np.random.default_rng(0)
    genres = ["a", "b", "c"]
    examples = [Example(f"{i}", genres[i % 3], f"group {i // 2}", "") for i in range(40)]
    probabilities = random.dirichlet(np.ones(3), 40).astype(np.float32)
    measured = evaluation.measure(examples, probabilities, genres)
    digest = hashlib.blake2b(repr(measured).encode(), digest_size=6).hexdigest()
    assert (evaluation.RECIPE, digest) == (3, "c15852e5d69a")


def test_pictures_are_drawn(trained: Path) -> None:
    for name in ("confusion.png", "curves.png"):
        with Image.open(trained / "evaluation" / name) as picture:
            assert min(picture.size) > 300
            assert len(set(picture.convert("L").tobytes())) > 20
    rows = read_table(trained / "evaluation" / "confusion.csv")
    assert [row["true genre"] for row in rows] == ["bass", "lead", "noise"]


def test_a_second_evaluation_does_nothing_and_loads_nothing_heavy(trained: Path) -> None:
    before = contents(trained)
    program = (
        "import sys\nfrom music_genre.cli import commands\n"
        "result = commands(sys.argv[1:], standalone_mode=False)\n"
        "sys.exit(str(sorted({'torch', 'matplotlib'} & set(sys.modules)) or 0))"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", program, "evaluate", "--run", trained],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert '"reused": true' in outcome.stdout, outcome.stderr
    assert outcome.stderr == "0\n"
    assert contents(trained) == before


def test_an_evaluation_by_an_older_recipe_is_done_again(
    trained: Path, prepared: Prepared, tmp_path: Path
) -> None:
    shutil.copytree(prepared.store, tmp_path / "store")
    metrics = tmp_path / "store" / "runs" / trained.name / "evaluation" / "metrics.json"
    now = metrics.read_text()
    metrics.write_text('{"key": "0123456789ab", "accuracy": 0.0}')
    assert evaluation.evaluate(metrics.parents[1], device_name="cpu")["reused"] is False
    assert metrics.read_text() == now


def test_other_splits_get_a_folder_of_their_own(trained: Path) -> None:
    result = evaluation.evaluate(trained, split_name="train", device_name="cpu")
    assert result["evaluation"] == str(trained / "evaluation-train")
    assert result["n_tracks"] == 9


def test_a_run_and_its_store_may_move(trained: Path, prepared: Prepared, tmp_path: Path) -> None:
    shutil.copytree(prepared.store, tmp_path / "moved")
    run = tmp_path / "moved" / "runs" / trained.name
    shutil.rmtree(run / "evaluation")
    result = evaluation.evaluate(run, device_name="cpu")
    assert result["reused"] is False
    assert read_json(Path(result["metrics"])) == read_json(trained / "evaluation" / "metrics.json")


def test_an_unfinished_run_is_refused(trained: Path, prepared: Prepared, tmp_path: Path) -> None:
    run = prepared.store / "runs" / "unfinished"
    shutil.copytree(trained, run)
    (run / "training.json").unlink()
    shutil.rmtree(run / "evaluation")
    with pytest.raises(InputError, match="has not finished"):
        evaluation.evaluate(run)
    shutil.rmtree(run)


def test_other_weights_are_measured_anew(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    settings = read_json(run / "settings.json") or {}
    settings["split"] = str((trained / settings["split"]).resolve())
    write_json(run / "settings.json", settings)
    assert evaluation.evaluate(run, device_name="cpu")["reused"] is True
    record = read_json(run / "training.json") or {}
    state = torch.load(run / record["checkpoint"], weights_only=True)
    state["weights"] = {name: value * 0 for name, value in state["weights"].items()}
    state["averaged"], state["step"] = None, state["step"] + 1
    write_json(run / "training.json", record | {"checkpoint": checkpoint.save(run, state).name})
    again = evaluation.evaluate(run, device_name="cpu")
    assert again["reused"] is False
    assert again["accuracy"] < 1
