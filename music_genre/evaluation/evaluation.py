"""Measure a trained model on a split.

Modules that load torch or matplotlib are imported inside functions, because neither library is
needed to check whether a run has already been measured.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from music_genre.config import THIS_MACHINE
from music_genre.dataset.examples import Example
from music_genre.dataset.split import read_split
from music_genre.errors import InputError
from music_genre.evaluation import metrics
from music_genre.store import keys, records, runs, tables

if TYPE_CHECKING:
    import torch

RECIPE = 3
"""Increase this with every code change that gives other results for the same run and split."""


def evaluate(
    run: Path,
    *,
    split_name: str = "test",
    device_name: str = "auto",
    gpu_locks: Path = THIS_MACHINE.gpu_locks,
) -> dict[str, Any]:
    """Measure a finished run on one of its splits; write the results below the run folder.

    The results are metrics.json, predictions.csv (each track's probabilities), confusion.csv and
    confusion.png (the confusion matrix), and curves.png (drawn from the run's history.csv).

    Args:
        run: the run folder that `train` made.
        split_name: test, validation or train.
        device_name: auto, cpu or cuda.
        gpu_locks: folder of the GPUs' locks.

    Returns:
        The result: path of the metrics, accuracy with its interval, macro F1.

    Raises:
        InputError: the run has not finished, or its split is missing or has changed.
        TemporaryError: another process is using the GPU.
    """
    settings, split_dir = runs.read_settings(run)
    folder = run / ("evaluation" if split_name == "test" else f"evaluation-{split_name}")
    finished = runs.read_finished(run) or {}
    # The checkpoint's file name contains a hash of the checkpoint, so the key changes if the
    # weights change.
    key = keys.content_key(settings.key, finished.get("checkpoint"), split_name, RECIPE)
    record = records.read_json(folder / "metrics.json") or {}
    reused = record.get("key") == key
    if not reused:
        examples, images_dir = _read_examples(run, settings, split_dir, split_name)
        from music_genre.model import device  # loads torch

        with device.held(device_name, gpu_locks) as chosen:
            rows = _probabilities(run, examples, images_dir, chosen)
        measured = measure(examples, rows, settings.genres)
        record = {"key": key, "split_name": split_name, **measured}
        _write(run, folder, record, examples, rows)
    shown = {
        name: record[name] for name in ("accuracy", "accuracy_interval", "macro_f1", "n_tracks")
    }
    paths = {"metrics": str(folder / "metrics.json"), "evaluation": str(folder)}
    return {**shown, **paths, "reused": reused}


def _read_examples(
    run: Path, settings: runs.RunSettings, split_dir: Path, split_name: str
) -> tuple[list[Example], Path]:
    """Return a split's examples and the folder of their images."""
    split = read_split(split_dir)
    if split.key != settings.split_key:
        raise InputError(f"{split_dir}: not the split that {run} was trained on; train again")
    return split.examples_in(split_name), split.images_dir


def _probabilities(
    run: Path, examples: list[Example], images_dir: Path, chosen: "torch.device"
) -> NDArray[np.float32]:
    """Return each track's genre probabilities, (n_tracks, n_genres) float32."""
    from music_genre.dataset.crops import read_images
    from music_genre.model.classifier import Classifier

    classifier = Classifier.load(run, chosen)
    images = read_images([images_dir / e.image for e in examples], classifier.n_mels)
    return np.stack(list(classifier.probabilities(images)))


def measure(
    examples: list[Example], probabilities: NDArray[np.float32], genres: list[str]
) -> dict[str, Any]:
    """Compare each track's predicted genre with its true genre.

    Args:
        examples: the tracks.
        probabilities: (n_tracks, n_genres) float32.
        genres: the genre of each column.

    Returns:
        The measures for metrics.json.
    """
    truth = np.array([genres.index(example.genre) for example in examples])
    predicted = probabilities.argmax(axis=1)
    groups = [example.group for example in examples]
    confusion = metrics.confusion_matrix(truth, predicted, len(genres))
    scores = metrics.genre_scores(confusion)
    low, high = metrics.accuracy_interval(truth == predicted, groups)
    return {
        "accuracy": round(metrics.accuracy(confusion), 4),
        "accuracy_interval": [round(low, 4), round(high, 4)],
        "macro_f1": round(float(scores[:, 2].mean()), 4),
        "n_tracks": len(examples),
        "n_groups": len(set(groups)),
        "genres": {
            genre: dict(zip(("precision", "recall", "f1"), np.round(row, 4).tolist(), strict=True))
            for genre, row in zip(genres, scores, strict=True)
        },
        "confusion": confusion.tolist(),
    }


def _keep_fonts(run: Path) -> None:
    """Make matplotlib keep its font list beside the runs if the home folder is not writable."""
    if not os.access(Path.home(), os.W_OK):
        os.environ.setdefault("MPLCONFIGDIR", str(run.parent / ".matplotlib"))


def _write(
    run: Path,
    folder: Path,
    record: dict[str, Any],
    examples: list[Example],
    probabilities: NDArray[np.float32],
) -> None:
    """Write the tables and charts; write metrics.json last, because it marks them as complete."""
    _keep_fonts(run)
    from music_genre.evaluation import report  # loads matplotlib

    genres = list(record["genres"])
    rows = []
    for example, row in zip(examples, probabilities, strict=True):
        predicted, shares = metrics.name_genre(row, genres)
        columns = {f"p_{genre}": share for genre, share in shares.items()}
        about = {"path": example.path, "genre": example.genre, "predicted": predicted}
        rows.append({**about, **columns})
    tables.write_table(folder / "predictions.csv", rows, list(rows[0]))
    counts = [
        {"true genre": genre, **dict(zip(genres, row, strict=True))}
        for genre, row in zip(genres, record["confusion"], strict=True)
    ]
    tables.write_table(folder / "confusion.csv", counts, ["true genre", *genres])
    low, high = record["accuracy_interval"]
    title = f"{record['split_name']}: accuracy {record['accuracy']:.2f} ({low:.2f} to {high:.2f})"
    report.draw_confusion(folder / "confusion.png", np.array(record["confusion"]), genres, title)
    report.draw_curves(folder / "curves.png", tables.read_table(run / "history.csv"))
    records.write_json(folder / "metrics.json", record)
