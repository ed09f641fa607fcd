"""The `check` command, which checks a run's input before any work starts."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from music_genre.cli.options import artifacts_option, settings_of
from music_genre.cli.versions import access_options, data_options, take_access
from music_genre.config import TrainConfig


@click.command()
@data_options
@click.option("--models", required=True, help="Names of models, separated by commas.")
@settings_of(TrainConfig, without=("model",))
@artifacts_option
@access_options
def check(data: str, revision: str, models: str, store: Path, **settings: Any) -> dict[str, Any]:
    """Check the data address and the training settings before any work; torch is not required."""
    from music_genre import versioning

    access = {field.name: settings.pop(field.name) for field in fields(versioning.Access)}
    for model in models.split(","):
        TrainConfig(model=model.strip(), **settings)
    versioning.check(data, store, take_access(access), revision)
    return {"data": data, "revision": revision, "models": models}
