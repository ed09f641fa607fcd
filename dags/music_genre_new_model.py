"""An example of a DAG that reacts to new models: it logs each model that is published.

The DAG's schedule is the asset `music_genre_model`. The task `publish` emits the asset's event. The
event carries the result of `publish` and starts a run of this DAG. A run of `music_genre_training`
that makes no new model emits no event.
"""

import logging
from typing import Any

from airflow.sdk import DAG, task

from fleet.pipeline import PUBLISHED_MODEL

logger = logging.getLogger(__name__)


@task(queue="cpu")
def tell(triggering_asset_events: Any = None) -> list[str]:
    """Log each new model's name, its accuracy and how to fetch the model; returns the names."""
    models = [event.extra for event in triggering_asset_events[PUBLISHED_MODEL]]
    for model in models:
        low, high = model["accuracy_interval"]
        logger.info(
            "%s: accuracy %.3f (%.3f to %.3f) on %d tracks; to fetch the model: "
            "git clone --branch %s %s, then dvc pull -R %s",
            *(model["model"], model["accuracy"], low, high, model["n_tracks"]),
            *(model["tag"], model["repository"], model["path"]),
        )
    if not models:
        logger.info("no model has been published since the last run")
    return [model["model"] for model in models]


with DAG(
    "music_genre_new_model",
    schedule=[PUBLISHED_MODEL],
    is_paused_upon_creation=False,
    doc_md=__doc__,
    tags=["music-genre"],
):
    tell()
