"""The two commands of the first program, built from this program's stages."""

from pathlib import Path
from typing import Any

import click

from music_genre.cli.options import (
    address,
    machine_options,
    settings_of,
    weights_option,
    workers_option,
)
from music_genre.cli.progress import shown_progress
from music_genre.cli.stages import train
from music_genre.config import MOST_SEED, FeatureConfig, SplitConfig, TrainConfig


@click.command("create-image-features-from-audio")
@click.option(
    "--path_with_audios_dir",
    "audio",
    type=address,
    required=True,
    help="Folder that contains the genre folders.",
)
@click.option(
    "--path_to_image", "images", type=address, required=True, help="Folder for the images."
)
@workers_option
def create_image_features_from_audio(
    audio: Path, images: Path, workers: int | None
) -> dict[str, Any]:
    """Run scan and extract; both write to the same folder."""
    from music_genre.audio.catalogue import scan
    from music_genre.features.extraction import extract

    with shown_progress("scan") as progress:
        scanned = scan(audio, images, into=images, progress=progress)
    with shown_progress("extract") as progress:
        extracted = extract(
            images, images, FeatureConfig(), into=images, n_workers=workers, progress=progress
        )
    n_rejected = scanned["n_rejected"] + extracted["n_rejected"]
    reused = scanned["reused"] and extracted["reused"]
    return {**scanned, **extracted, "n_rejected": n_rejected, "reused": reused}


@click.command("train-using-image-features")
@click.option(
    "--images_path",
    "images",
    type=address,
    required=True,
    help="Folder with one folder of pictures per genre.",
)
@click.option(
    "--checkpoints_path", "run", type=address, required=True, help="Run folder, created if missing."
)
@click.option(
    "--split-seed",
    type=click.IntRange(0, MOST_SEED),
    default=SplitConfig.seed,
    show_default=True,
    help="Seed that decides which groups go to which split.",
)
@settings_of(SplitConfig, without=("seed",))
@settings_of(TrainConfig)
@weights_option
@machine_options
@click.pass_context
def train_using_image_features(
    context: click.Context, /, images: Path, run: Path, **settings: Any
) -> dict[str, Any]:
    """Run split, train and evaluate on a folder of pictures."""
    from music_genre.dataset.split import split
    from music_genre.evaluation.evaluation import evaluate

    shares = {name: settings.pop(name) for name in ("group_by", "test", "validation")}
    config = SplitConfig(seed=settings.pop("split_seed"), **shares)
    dealt = split(*_catalogued(images, run), run, config)
    trained = context.invoke(train, split_dir=Path(dealt["split"]), store=run, run=run, **settings)
    measured = evaluate(run, device_name=settings["device"], gpu_locks=settings["gpu_locks"])
    reused = dealt["reused"] and trained["reused"] and measured["reused"]
    return {**trained, **measured, "split": dealt["split"], "reused": reused}


def _catalogued(images: Path, store: Path) -> tuple[Path, Path | None]:
    """Find the catalogue of a folder of pictures, or make one by scanning the folder.

    Returns:
        (catalogue, images folder). The images folder is None if this function scanned the
        pictures, because the new catalogue then lists the pictures themselves.
    """
    from music_genre.audio.catalogue import scan
    from music_genre.dataset.examples import drawn_from
    from music_genre.features.pictures import PICTURES

    drawn = drawn_from(images)
    if drawn is not None:
        return drawn, images
    with shown_progress("scan") as progress:
        scanned = scan(images, store, kind=PICTURES, progress=progress)
    return Path(scanned["catalogue"]), None
