"""The stages' commands."""

import json
import logging
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from music_genre.cli.options import (
    address,
    artifacts_option,
    device_option,
    gpu_locks_option,
    machine_options,
    settings_of,
    shard,
    take_machine,
    weights_option,
    workers_option,
)
from music_genre.cli.progress import shown_progress
from music_genre.config import SPLITS, FeatureConfig, SplitConfig, TrainConfig
from music_genre.errors import InputError
from music_genre.resources import usable_cores, usable_memory
from music_genre.store import signals

logger = logging.getLogger(__name__)

SECONDS_WITHOUT_AN_EPOCH = 30.0
"""If an epoch takes more seconds than this, progress is logged during the epoch."""


@click.command()
@click.option("--audio", type=address, help="Folder that contains the genre folders.")
@click.option(
    "--pictures",
    type=address,
    help="Instead of --audio: folder that contains genre folders of existing spectrogram pictures.",
)
@artifacts_option
def scan(audio: Path | None, pictures: Path | None, store: Path) -> dict[str, Any]:
    """Catalogue a folder of audio files or pictures."""
    from music_genre.audio.catalogue import scan
    from music_genre.audio.inspection import AUDIO
    from music_genre.features.pictures import PICTURES

    folder = audio or pictures
    if folder is None or (audio and pictures):
        raise click.UsageError("Give either --audio or --pictures.")
    with shown_progress("scan") as progress:
        return scan(folder, store, kind=AUDIO if audio else PICTURES, progress=progress)


@click.command()
@click.option(
    "--catalogue", type=address, required=True, help="Catalogue address that scan printed."
)
@artifacts_option
@click.option(
    "--shard",
    "part",
    metavar="I/N",
    type=shard,
    default="1/1",
    help="Extract only part I of N of the tracks.",
)
@workers_option
def extract(
    catalogue: Path, store: Path, part: tuple[int, int], workers: int | None
) -> dict[str, Any]:
    """Draw the mel spectrograms that are still missing."""
    from music_genre.features.extraction import extract

    with shown_progress("extract") as progress:
        return extract(
            catalogue, store, FeatureConfig(), shard=part, n_workers=workers, progress=progress
        )


@click.command()
@click.option(
    "--catalogue", type=address, required=True, help="Catalogue address that scan printed."
)
@click.option(
    "--images",
    type=address,
    help="Images address that extract printed; omit it for a catalogue of pictures.",
)
@artifacts_option
@settings_of(SplitConfig)
@click.option(
    "--assigned-by",
    metavar="LIST",
    help="Assign tracks by a list instead of by seed and shares: gtzan-fault-filtered, or a CSV "
    "file with columns path (or track) and split, such as the split.csv of another split.",
)
def split(
    catalogue: Path, images: Path | None, store: Path, assigned_by: str | None, **settings: Any
) -> dict[str, Any]:
    """Assign groups of tracks to train, validation and test."""
    from music_genre.dataset.split import split

    return split(catalogue, images, store, SplitConfig(**settings), assigned_by=assigned_by)


@click.command()
@click.option(
    "--split", "split_dir", type=address, required=True, help="Split address that split printed."
)
@artifacts_option
@click.option(
    "--run", type=address, help="Run folder.  [default: in --artifacts, named by content hash]"
)
@weights_option
@settings_of(TrainConfig)
@machine_options
def train(
    split_dir: Path, store: Path, run: Path | None, weights: Path | None, **settings: Any
) -> dict[str, Any]:
    """Train a model, or resume an interrupted run.

    Stops when the shell or program that started it exits; use nohup to keep it running.
    """
    from music_genre.training.loop import train

    signals.die_with_parent(signal.SIGKILL)
    machine = take_machine(settings)
    if settings["optimizer"] == "sdg":
        logger.info("--optimizer sdg is taken to mean sgd")
    with shown_progress("train", every=SECONDS_WITHOUT_AN_EPOCH) as progress:
        return train(
            split_dir,
            store,
            TrainConfig(**settings),
            into=run,
            weights=weights,
            machine=machine,
            progress=progress,
        )


@click.command()
@click.option("--run", type=address, required=True, help="Run address that train printed.")
@click.option(
    "--split-name",
    type=click.Choice(SPLITS),
    default="test",
    show_default=True,
    help="Split to evaluate on.",
)
@device_option
@gpu_locks_option
def evaluate(run: Path, split_name: str, device: str, gpu_locks: Path) -> dict[str, Any]:
    """Evaluate a trained model on a split."""
    from music_genre.evaluation.evaluation import evaluate

    return evaluate(run, split_name=split_name, device_name=device, gpu_locks=gpu_locks)


@click.command()
@click.option("--run", type=address, required=True, help="Run address that train printed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines with all probabilities.")
@device_option
@gpu_locks_option
@click.argument("paths", nargs=-1, required=True, type=address)
def predict(
    run: Path, as_json: bool, device: str, gpu_locks: Path, paths: tuple[Path, ...]
) -> None:
    """Predict the genre of audio files or pictures.

    Folders are searched recursively: for pictures if the model was trained on pictures that extract
    did not draw, otherwise for audio files. A file that cannot be used does not stop the others.
    The reason is printed as a JSON line or, without --json, as a line on standard error.
    """
    from music_genre.evaluation.prediction import Unusable, predict

    n_paths = n_unusable = 0
    for found in predict(run, list(paths), device_name=device, gpu_locks=gpu_locks):
        n_paths += 1
        n_unusable += isinstance(found, Unusable)
        path = click.format_filename(found.path)
        if as_json:
            click.echo(json.dumps(vars(found)))
        elif isinstance(found, Unusable):
            click.echo(f"{path}: {found.error}", err=True)
        else:
            click.echo(f"{found.genre:<20} {found.probability:6.1%}  {path}")
    if n_unusable:
        raise InputError(
            f"{n_unusable} of {n_paths} files could not be used; the line of each file gives "
            "the reason"
        )


@click.command()
@device_option
def device(device: str) -> dict[str, Any]:
    """Show the device that training would use on this machine."""
    found = {"cores": usable_cores(), "free_memory_gib": round(usable_memory() / 2**30, 1)}
    if find_spec("torch") is None:  # torch is missing on workers that only preprocess
        return {"device": "cpu", "device_name": "CPU; torch is not installed", **found}
    from music_genre.model.device import choose, describe

    chosen = choose(device)
    return {"device": chosen.type, "device_name": describe(chosen), **found}
