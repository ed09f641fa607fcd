"""Evaluation folders and predictions of a trained run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, Prepared, Run, contents, tone
from PIL import Image

from music_genre import evaluation, training
from music_genre.artifacts import read_json, read_table
from music_genre.config import TrainConfig
from music_genre.errors import InputError

CONFIG = TrainConfig(
    model="shufflenet_v2_x0_5", epochs=12, batch_size=6, crop_frames=32, optimizer="adam"
)


@pytest.fixture(scope="module")
def trained(prepared: Prepared) -> Path:
    result = training.train(prepared.split, prepared.store, CONFIG, device_name="cpu")
    assert result["run"].startswith(str(prepared.store / "runs"))
    evaluation.evaluate(Path(result["run"]), device_name="cpu")
    return Path(result["run"])


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
        assert sum(values) == pytest.approx(1, abs=1e-3)
        assert ("bass", "lead", "noise")[int(np.argmax(values))] == row["predicted"]


def test_it_learns_genres_that_differ(trained: Path) -> None:
    record = read_json(trained / "evaluation" / "metrics.json")
    assert record is not None
    assert record["accuracy"] > 0.6


def test_pictures_are_drawn(trained: Path) -> None:
    for name in ("confusion.png", "curves.png"):
        with Image.open(trained / "evaluation" / name) as picture:
            assert min(picture.size) > 300
            assert len(set(picture.convert("L").tobytes())) > 20
    rows = read_table(trained / "evaluation" / "confusion.csv")
    assert [row["true genre"] for row in rows] == ["bass", "lead", "noise"]


def test_a_second_evaluation_does_nothing(trained: Path) -> None:
    before = contents(trained)
    assert evaluation.evaluate(trained)["reused"] is True
    assert contents(trained) == before


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


def test_predictions_agree_with_the_evaluation(trained: Path, prepared: Prepared) -> None:
    rows = read_table(trained / "evaluation" / "predictions.csv")
    files = [prepared.audio / row["path"] for row in rows]
    found = list(evaluation.predict(trained, files, device_name="cpu", on_error=print))
    assert [p.path for p in found] == [str(file) for file in files]
    for prediction, row in zip(found, rows, strict=True):
        assert prediction.genre == row["predicted"]
        for genre, probability in prediction.probabilities.items():
            assert probability == pytest.approx(float(row[f"p_{genre}"]), abs=2e-3)


def test_predict_reads_folders_and_goes_on_after_bad_files(
    trained: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "sub").mkdir()
    soundfile.write(tmp_path / "sub" / "good one.flac", tone("bass", 1), SAMPLE_RATE)
    (tmp_path / "bad.wav").write_text("no")
    outcome = run("predict", "--run", trained, "--json", tmp_path)
    assert outcome.code == 0
    (line,) = outcome.stdout.splitlines()
    assert json.loads(line)["path"].endswith("good one.flac")
    assert set(json.loads(line)) == {"path", "genre", "probability", "probabilities"}
    assert "bad.wav: not audio" in outcome.stderr
    table = run("predict", "--run", trained, tmp_path / "sub" / "good one.flac")
    assert json.loads(line)["genre"] in table.stdout
    refused = run("predict", "--run", trained, tmp_path / "bad.wav", tmp_path / "gone.wav")
    assert refused.code == 1
    assert "none of 2 files could be read" in refused.error
