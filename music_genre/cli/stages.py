"""The stages' commands."""

import json
import logging
from pathlib import Path
from typing import Any

import click

from music_genre.cli.options import (
    address,
    artifacts_option,
    checkpoint_option,
    device_option,
    settings_of,
    shard,
    workers_option,
)
from music_genre.cli.progress import shown_progress
from music_genre.config import SPLITS, FeatureConfig, SplitConfig, TrainConfig
from music_genre.errors import InputError

logger = logging.getLogger(__name__)


@click.command()
@click.option("--audio", type=address, required=True, help="Folder that holds the genre folders.")
@artifacts_option
def scan(audio: Path, store: Path) -> dict[str, Any]:
    """Catalogue a folder of audio."""
    from music_genre.audio import scan

    with shown_progress("scan") as progress:
        return scan(audio, store, progress=progress)


@click.command()
@click.option("--catalogue", type=address, required=True, help="What scan printed.")
@artifacts_option
@click.option(
    "--shard",
    "part",
    metavar="I/N",
    type=shard,
    default="1/1",
    help="Only this part of the tracks.",
)
@workers_option
def extract(
    catalogue: Path, store: Path, part: tuple[int, int], workers: int | None
) -> dict[str, Any]:
    """Draw the mel spectrograms still missing."""
    from music_genre.features import extract

    with shown_progress("extract") as progress:
        return extract(
            catalogue, store, FeatureConfig(), shard=part, n_workers=workers, progress=progress
        )


@click.command()
@click.option("--catalogue", type=address, required=True, help="What scan printed.")
@click.option("--images", type=address, required=True, help="What extract printed.")
@artifacts_option
@settings_of(SplitConfig)
def split(catalogue: Path, images: Path, store: Path, **settings: Any) -> dict[str, Any]:
    """Deal groups to train, validation, test."""
    from music_genre.dataset import split

    return split(catalogue, images, store, SplitConfig(**settings))


@click.command()
@click.option("--split", "split_dir", type=address, required=True, help="What split printed.")
@artifacts_option
@click.option("--run", type=address, help="Run folder.  [default: one by content, in artifacts]")
@settings_of(TrainConfig)
@device_option
@checkpoint_option
def train(
    split_dir: Path,
    store: Path,
    run: Path | None,
    device: str,
    checkpoint_seconds: float,
    **settings: Any,
) -> dict[str, Any]:
    """Train a model, or go on where a run ended."""
    from music_genre.training import train

    if settings["optimizer"] == "sdg":
        logger.info("--optimizer sdg is taken to mean sgd")
    with shown_progress("train", every=float("inf")) as progress:
        return train(
            split_dir,
            store,
            TrainConfig(**settings),
            into=run,
            device_name=device,
            checkpoint_seconds=checkpoint_seconds,
            progress=progress,
        )


@click.command()
@click.option("--run", type=address, required=True, help="What train printed.")
@click.option(
    "--split-name",
    type=click.Choice(SPLITS),
    default="test",
    show_default=True,
    help="What to measure on.",
)
@device_option
def evaluate(run: Path, split_name: str, device: str) -> dict[str, Any]:
    """Measure a trained model on a split."""
    from music_genre.evaluation import evaluate

    return evaluate(run, split_name=split_name, device_name=device)


@click.command()
@click.option("--run", type=address, required=True, help="What train printed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines with all probabilities.")
@device_option
@click.argument("paths", nargs=-1, required=True, type=address)
def predict(run: Path, as_json: bool, device: str, paths: tuple[Path, ...]) -> None:
    """Name the genre of audio files."""
    from music_genre.evaluation import predict

    n_errors = n_predictions = 0

    def report(path: Path, reason: str) -> None:
        nonlocal n_errors
        n_errors += 1
        click.echo(f"{click.format_filename(path)}: {reason}", err=True)

    for prediction in predict(run, list(paths), device_name=device, on_error=report):
        n_predictions += 1
        if as_json:
            click.echo(json.dumps(vars(prediction)))
        else:
            path = click.format_filename(prediction.path)
            click.echo(f"{prediction.genre:<20} {prediction.probability:6.1%}  {path}")
    if not n_predictions:
        raise InputError(f"none of {n_errors} files could be read; give readable audio files")
