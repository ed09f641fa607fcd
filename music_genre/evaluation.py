"""Measure a trained model on a split, and name the genres of new audio."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from music_genre import artifacts, audio, checkpoint, dataset, features, metrics, model, report
from music_genre.errors import AudioError, InputError

logger = logging.getLogger(__name__)

RECIPE = 1
"""Raise when the same run and split would give other numbers or files."""


def evaluate(run: Path, *, split_name: str = "test", device_name: str = "auto") -> dict[str, Any]:
    """Measure a finished run on one of its splits, into a folder of the run.

    Args:
        run: what `train` made.
        split_name: test, validation or train.
        device_name: auto, cpu or cuda.

    Returns:
        The result: where the metrics are, accuracy with its interval, macro F1.

    Raises:
        InputError: the run has not finished, or its split is gone.
    """
    settings, split_dir = checkpoint.read_settings(run)
    folder = run / ("evaluation" if split_name == "test" else f"evaluation-{split_name}")
    key = artifacts.content_key(settings.key, split_name, RECIPE)
    record = artifacts.read_json(folder / "metrics.json")
    reused = record is not None and record["key"] == key
    if record is None or not reused:
        split = dataset.read_split(split_dir)
        if split.key != settings.split_key:
            raise InputError(f"{split_dir}: not the split that {run} was trained on; train again")
        examples = split.examples_in(split_name)
        network, device = _load(run, settings, device_name)
        images = dataset.load_images(
            examples, split.images_dir, settings.genres, settings.n_mels
        ).to(device)
        probabilities = model.track_probabilities(network, images, settings.config.crop_frames)
        measured = _measure(examples, probabilities.numpy(), settings.genres)
        record = {"key": key, "split_name": split_name, **measured}
        _write(run, folder, record, examples, probabilities.numpy())
    shown = {
        name: record[name] for name in ("accuracy", "accuracy_interval", "macro_f1", "n_tracks")
    }
    paths = {"metrics": str(folder / "metrics.json"), "evaluation": str(folder)}
    return {**paths, **shown, "reused": reused}


def _load(
    run: Path, settings: checkpoint.RunSettings, device_name: str
) -> tuple[nn.Module, torch.device]:
    """Build a finished run's network with its weights."""
    device = model.choose_device(device_name)
    weights = checkpoint.load_weights(run, device)
    config = settings.config
    network = model.build(
        config.model, len(settings.genres), settings.n_mels, config.crop_frames, config.seed
    ).to(device)
    network.load_state_dict(weights)
    return network, device


def _measure(
    examples: list[dataset.Example], probabilities: NDArray[np.float32], genres: list[str]
) -> dict[str, Any]:
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


def _write(
    run: Path,
    folder: Path,
    record: dict[str, Any],
    examples: list[dataset.Example],
    probabilities: NDArray[np.float32],
) -> None:
    """Write tables and pictures, and last the metrics that mark them complete."""
    genres = list(record["genres"])
    rows = [
        {
            "path": example.path,
            "genre": example.genre,
            "predicted": genres[int(row.argmax())],
            **{f"p_{genre}": f"{p:.4f}" for genre, p in zip(genres, row, strict=True)},
        }
        for example, row in zip(examples, probabilities, strict=True)
    ]
    artifacts.write_table(folder / "predictions.csv", rows, list(rows[0]))
    counts = [
        {"true genre": genre, **dict(zip(genres, row, strict=True))}
        for genre, row in zip(genres, record["confusion"], strict=True)
    ]
    artifacts.write_table(folder / "confusion.csv", counts, ["true genre", *genres])
    low, high = record["accuracy_interval"]
    title = f"{record['split_name']}: accuracy {record['accuracy']:.2f} ({low:.2f} to {high:.2f})"
    report.draw_confusion(folder / "confusion.png", np.array(record["confusion"]), genres, title)
    report.draw_curves(folder / "curves.png", artifacts.read_table(run / "history.csv"))
    artifacts.write_json(folder / "metrics.json", record)


@dataclass(frozen=True)
class Prediction:
    """The genre of one audio file."""

    path: str
    genre: str
    probability: float
    probabilities: dict[str, float]


def predict(
    run: Path,
    paths: list[Path],
    *,
    device_name: str = "auto",
    on_error: Callable[[Path, str], None],
) -> Iterator[Prediction]:
    """Name the genre of audio files, with the settings of the run's own images.

    Args:
        run: what `train` made.
        paths: files, and folders that are searched for audio files.
        device_name: auto, cpu or cuda.
        on_error: told (file, reason) of each file that cannot be used.

    Yields:
        One prediction per usable file, in order.

    Raises:
        InputError: the run has not finished, or was trained on pictures from elsewhere.
    """
    settings, _ = checkpoint.read_settings(run)
    if settings.features is None:
        raise InputError(
            f"{run}: was trained on pictures whose making is unknown, so it cannot hear audio; "
            "train on what extract makes"
        )
    network, device = _load(run, settings, device_name)
    for path in _audio_files(paths):
        try:
            pixels = features.image_of(path, settings.features)
        except (AudioError, OSError) as error:
            on_error(path, str(error.strerror if isinstance(error, OSError) else error))
            continue
        images = dataset.stack_images([pixels], [0]).to(device)
        row = model.track_probabilities(network, images, settings.config.crop_frames)[0].tolist()
        probabilities = dict(zip(settings.genres, (round(p, 4) for p in row), strict=True))
        genre = max(probabilities, key=probabilities.__getitem__)
        yield Prediction(str(path), genre, probabilities[genre], probabilities)


def _audio_files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(
                file for file in path.rglob("*") if file.suffix.lower() in audio.SUFFIXES
            )
        else:
            yield path
