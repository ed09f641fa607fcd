"""Predict the genres of audio files and pictures with the model of a finished run."""

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from music_genre.audio import decoding, inspection, workers
from music_genre.config import THIS_MACHINE, FeatureConfig
from music_genre.errors import AudioError, PictureError
from music_genre.evaluation.metrics import name_genre
from music_genre.features import extraction, pictures
from music_genre.model import device
from music_genre.model.classifier import Classifier
from music_genre.resources import usable_cores
from music_genre.store import addresses, runs


@dataclass(frozen=True)
class Prediction:
    """The predicted genre of one file."""

    path: str
    genre: str
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Unusable:
    """A path for which no genre can be predicted, and the reason."""

    path: str
    error: str


def predict(
    run: Path,
    paths: list[Path],
    *,
    device_name: str = "auto",
    gpu_locks: Path = THIS_MACHINE.gpu_locks,
) -> Iterator[Prediction | Unusable]:
    """Predict the genre of audio files and pictures.

    Audio files are turned into images with the same settings as the run's training images.

    Args:
        run: the run folder that `train` made, or a published model's folder.
        paths: files and folders. Folders are searched for audio files or, if the run was trained
            on pictures that `extract` did not draw, for pictures.
        device_name: auto, cpu or cuda.
        gpu_locks: folder of the GPUs' locks.

    Yields:
        One result per file, in the order of `paths`; the files of a folder are sorted by path. A
        result is yielded once it and all earlier results are known. A folder in which no file is
        found gives one `Unusable`.

    Raises:
        InputError: the run has not finished.
        TemporaryError: a decoding process was killed from outside, or the GPU is in use.
    """
    settings, _ = runs.read_settings(run)
    hear = partial(_hear, drawn_with=settings.features, n_mels=settings.n_mels)
    suffixes = pictures.SUFFIXES if settings.features is None else inspection.SUFFIXES
    files = list(_files(paths, suffixes))
    known: dict[int, Prediction | Unusable] = {}
    classifier: Classifier | None = None
    turn = 0
    with contextlib.ExitStack() as computing:
        for number, heard in workers.run(hear, files, n_workers=usable_cores(), seconds=_patience):
            # The model is loaded only after the workers are forked: torch starts threads, and a
            # fork copies only the calling thread.
            if classifier is None:
                chosen = computing.enter_context(device.held(device_name, gpu_locks))
                classifier = Classifier.load(run, chosen)
            known[number] = _judge(classifier, str(files[number]), heard)
            while turn in known:
                yield known.pop(turn)
                turn += 1


def _judge(
    classifier: Classifier, path: str, heard: NDArray[np.uint8] | str | workers.Failure
) -> Prediction | Unusable:
    """Predict the genre of a file's image, or say why the file cannot be used."""
    if isinstance(heard, workers.Failure):
        return Unusable(path, heard.reason)
    if isinstance(heard, str):
        return Unusable(path, heard)
    (row,) = classifier.probabilities([heard])
    genre, shares = name_genre(row, classifier.genres)
    return Prediction(path, genre, shares[genre], shares)


def _hear(path: Path, drawn_with: FeatureConfig | None, n_mels: int) -> NDArray[np.uint8] | str:
    """Return a file's image, (n_mels, n_frames) uint8, or the reason why there is none."""
    try:
        if addresses.is_folder(path):
            os.scandir(path).close()  # raises OSError if the folder cannot be read
            return f"contains no {'pictures' if drawn_with is None else 'audio files'}"
        if path.suffix.lower() in pictures.SUFFIXES:
            return pictures.read_picture(path, n_mels, only_own=drawn_with is not None)
        if drawn_with is None:
            return (
                "not a picture; the model was trained on pictures that extract did not draw, and "
                "takes only pictures"
            )
        return extraction.image_of(path, drawn_with)
    except PictureError as error:
        return error.reason
    except AudioError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _patience(path: Path) -> float:
    try:
        return decoding.patience(path.stat().st_size)
    except OSError:  # `_hear` will get and report the same error
        return decoding.patience(0)


def _files(paths: list[Path], suffixes: Collection[str]) -> Iterator[Path]:
    """Yield the given files, and all matching files below the given folders.

    If a folder has no matching files, the folder itself is yielded: `_hear` then reports it.
    """
    for path in paths:
        found = sorted(_search(path, suffixes)) if addresses.is_folder(path) else []
        yield from found or [path]


def _search(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Search a folder recursively; yield files with these suffixes, then unreadable folders."""
    unreadable: list[Path] = []
    for parent, folders, names in os.walk(
        folder, onerror=lambda error: unreadable.append(Path(error.filename))
    ):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if Path(name).suffix.lower() in suffixes and not name.startswith("."):
                yield Path(parent, name)
    yield from unreadable
