"""Name the genres of audio with the network of a finished run."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from music_genre.audio import catalogue as audio
from music_genre.audio import decoding, workers
from music_genre.config import THIS_MACHINE, FeatureConfig
from music_genre.dataset import crops as tensors
from music_genre.errors import AudioError, InputError
from music_genre.features import extraction as features
from music_genre.model import checkpoint, device
from music_genre.model import network as model
from music_genre.resources import usable_cores
from music_genre.store import addresses, runs

DIGITS: Final = 6
"""Decimals of a probability wherever one is written."""


@dataclass(frozen=True)
class Prediction:
    """The genre of one audio file."""

    path: str
    genre: str
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Unusable:
    """Why a path has no genre."""

    path: str
    error: str


def predict(
    run: Path,
    paths: list[Path],
    *,
    device_name: str = "auto",
    gpu_locks: Path = THIS_MACHINE.gpu_locks,
) -> Iterator[Prediction | Unusable]:
    """Name the genre of audio files, with the settings of the run's own images.

    Args:
        run: what `train` made.
        paths: files, and folders that are searched for audio files.
        device_name: auto, cpu or cuda.
        gpu_locks: folder of the GPUs' locks.

    Yields:
        What became of each file, in order, as soon as it is known; a folder without audio files
        is unusable itself.

    Raises:
        InputError: the run has not finished, or was trained on pictures from elsewhere.
        TemporaryError: a process that decodes was killed from outside, or another has the GPU.
    """
    settings, _ = runs.read_settings(run)
    drawn_with = settings.features
    if drawn_with is None:
        raise InputError(
            f"{run}: was trained on pictures whose making is unknown, so it cannot hear audio; "
            "train on what extract makes"
        )
    files = list(_audio_files(paths))
    known: dict[int, Prediction | Unusable] = {}
    network: nn.Module | None = None
    turn = 0
    with contextlib.ExitStack() as computing:
        for number, heard in workers.run(
            lambda path: _hear(path, drawn_with), files, n_workers=usable_cores(), seconds=_patience
        ):
            # Not before the workers are there: they are forked, and torch has threads.
            if network is None:
                chosen = computing.enter_context(device.held(device_name, gpu_locks))
                network = load_network(run, settings, chosen)
            known[number] = _judge(network, settings, str(files[number]), heard)
            while turn in known:
                yield known.pop(turn)
                turn += 1


def _judge(
    network: nn.Module,
    settings: runs.RunSettings,
    path: str,
    heard: NDArray[np.uint8] | str | workers.Failure,
) -> Prediction | Unusable:
    """Name the genre of what was heard in a file, or say why it has none."""
    if isinstance(heard, workers.Failure):
        return Unusable(path, heard.reason)
    if isinstance(heard, str):
        return Unusable(path, heard)
    row = probabilities(network, heard, settings.config.crop_frames)
    genre, shares = name_genre(row, settings.genres)
    return Prediction(path, genre, shares[genre], shares)


def load_network(run: Path, settings: runs.RunSettings, chosen: torch.device) -> nn.Module:
    """Build a finished run's network with its weights, on a device.

    Raises:
        InputError: the run has not finished.
    """
    weights = checkpoint.load_weights(run)
    config = settings.config
    network = model.build(
        config.model, len(settings.genres), settings.n_mels, config.crop_frames, config.seed
    ).to(chosen)
    network.load_state_dict(weights)
    return network


def probabilities(
    network: nn.Module, pixels: NDArray[np.uint8], crop_frames: int
) -> NDArray[np.float32]:
    """Average the probabilities of crops that cover a track.

    A track goes through the network alone, for the last digits depend on what else is in a
    batch: so its probabilities are the same in whatever company it is measured or predicted.

    Args:
        network: maps crops to logits.
        pixels: (n_mels, n_frames) uint8, the track's image.
        crop_frames: frames of a crop.

    Returns:
        (n_genres,) float32; their sum is 1.
    """
    images = tensors.stack_images([pixels], [0]).to(next(network.parameters()).device)
    row: NDArray[np.float32] = model.track_probabilities(
        network, images, crop_frames, exact=True
    ).numpy()[0]
    return row


def name_genre(row: NDArray[np.float32], genres: list[str]) -> tuple[str, dict[str, float]]:
    """Return the likeliest genre, and every genre's probability as it is written."""
    shares = dict(zip(genres, (round(float(share), DIGITS) for share in row), strict=True))
    return genres[int(row.argmax())], shares


def _hear(path: Path, config: FeatureConfig) -> NDArray[np.uint8] | str:
    """Draw a file's image, or say why there is none."""
    try:
        if addresses.is_folder(path):
            os.scandir(path).close()  # says why, where it cannot be searched
            return "holds no audio files"
        return features.image_of(path, config)
    except AudioError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _patience(path: Path) -> float:
    try:
        return decoding.patience(path.stat().st_size)
    except OSError:  # as `_hear` will find, and say
        return decoding.patience(0)


def _audio_files(paths: list[Path]) -> Iterator[Path]:
    """List files as given, and the audio files in folders; a folder without stays itself."""
    for path in paths:
        found = sorted(_search(path)) if addresses.is_folder(path) else []
        yield from found or [path]


def _search(folder: Path) -> Iterator[Path]:
    """List the audio files below a folder, and the folders that cannot be searched."""
    unreadable: list[Path] = []
    for parent, folders, names in os.walk(
        folder, onerror=lambda error: unreadable.append(Path(error.filename))
    ):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if Path(name).suffix.lower() in audio.SUFFIXES and not name.startswith("."):
                yield Path(parent, name)
    yield from unreadable
