"""An example of a DAG that reacts to new models: it logs each model that is published.

The DAG's schedule is the asset `music_genre_model`. The task `publish` emits the asset's event. The
event carries the result of `publish` and starts a run of this DAG. A run of `music_genre_training`
that makes no new model emits no event.

If several models are published before a run of this DAG begins, Airflow 3.3.2 gives the run only
the first event. So the task asks for all later events too, and an Airflow variable holds the last
event whose model was logged.
"""

import json
import logging
from typing import Any

from airflow.sdk import DAG, Variable, task

from fleet.pipeline import PUBLISHED_MODEL

logger = logging.getLogger(__name__)
TOLD = "music_genre_new_model_told"
"""The Airflow variable with id and time of the last event whose model was logged."""


@task(queue="cpu", inlets=[PUBLISHED_MODEL])
def tell(triggering_asset_events: Any = None, inlet_events: Any = None) -> list[str]:
    """Log each new model's name, its accuracy and how to fetch the model; returns the names."""
    told = json.loads(Variable.get(TOLD, default="null"))
    waiting = [event.timestamp.isoformat() for event in triggering_asset_events[PUBLISHED_MODEL]]
    since = told["timestamp"] if told else min(waiting, default="")
    events = list(inlet_events[PUBLISHED_MODEL].after(since)) if since else []
    events = [event for event in events if not told or event.id > told["id"]]
    for event in events:
        model = event.extra
        low, high = model["accuracy_interval"]
        logger.info(
            "%s: accuracy %.3f (%.3f to %.3f) on %d tracks; to fetch the model: "
            "git clone --branch %s %s, then dvc pull -R %s",
            *(model["model"], model["accuracy"], low, high, model["n_tracks"]),
            *(model["tag"], model["repository"], model["path"]),
        )
    if not events:
        logger.info("no model has been published since the last run")
        return []
    last = max(events, key=lambda event: event.id)
    Variable.set(TOLD, json.dumps({"id": last.id, "timestamp": last.timestamp.isoformat()}))
    return [event.extra["model"] for event in events]


with DAG(
    "music_genre_new_model",
    schedule=[PUBLISHED_MODEL],
    is_paused_upon_creation=False,
    max_active_runs=1,  # because a run must know which models the previous run has logged
    doc_md=__doc__,
    tags=["music-genre"],
):
    tell()
