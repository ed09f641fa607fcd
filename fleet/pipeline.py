"""What the training DAGs share: the form's parameters, and the way from audio to a split."""

import os
from collections.abc import Callable
from typing import Any

from airflow.sdk import Asset, Param

from fleet.contract import PUBLISHING_POOL, queues
from fleet.operators import CommandOperator

DATA_SET = Asset("music_genre_data_set")
"""Has an event when there is audio that was never catalogued before."""
FEATURES = Asset("music_genre_features")
"""Has an event when there are images, or a split of them, that there were not before."""
PUBLISHED_MODEL = Asset("music_genre_model")
"""Has an event when a model was published; its extras are the model's name, commit and metrics."""
S3_CONNECTION = "music_genre_s3"
"""Airflow connection that opens the DVC remote; where it is not defined, the worker's own
credentials do."""
N_SHARDS = 4  # extract's tasks; more than the CPU workers' slots only waits
GPU_QUEUES = [queue.name for queue in queues().values() if queue.resource == "gpu"]
MODEL: dict[str, Any] = {
    "pattern": "^[a-z0-9_]+$",
    "examples": ["resnet18", "resnet50", "efficientnet_b0", "convnext_tiny", "densenet121"],
}
SEED: dict[str, Any] = {"minimum": 0, "maximum": 2**31 - 1}


def parameters(**own: Param) -> dict[str, Param]:
    """The form of a run: what all trainings have, with a DAG's own after the data address."""
    data = Param(
        os.environ.get("MUSIC_GENRE_AUDIO", "/data/genres_original"),
        type="string",
        minLength=1,
        title="Data address",
        description="Folder with one folder of audio files per genre, or dvc:PATH of the "
        "repository of versions.",
    )
    revision = Param(
        "",
        type="string",
        title="Data revision",
        description="Branch, tag or commit of dvc:PATH; empty: the newest.",
    )
    shared = {
        "optimizer": Param("sgd", type="string", enum=["sgd", "adam", "adamw", "rmsprop"]),
        "criterion": Param("cross_entropy", type="string", enum=["cross_entropy", "focal"]),
        "epochs": Param(30, type="integer", minimum=1, maximum=10_000),
        "learning_rate": Param(
            0.0,
            type="number",
            minimum=0,
            maximum=10,
            description="Peak of the one-cycle schedule; 0: the optimizer's own.",
        ),
        "gpu_queue": Param(
            GPU_QUEUES[0],
            type="string",
            enum=GPU_QUEUES,
            title="Queue of the training",
            description="One of larger GPUs for what is out of memory on others.",
        ),
    }
    return {"audio": data, "revision": revision, **own, **shared}


def preprocess(split_seed: str) -> CommandOperator:
    """Add `pull` → `scan` → `extract` (in shards side by side) → `split`; returns the last."""
    wanted = ["--data", "{{ params.audio }}", "--revision", "{{ params.revision }}"]
    pull = CommandOperator(
        task_id="pull",
        queue="cpu",
        command=["music-genre", "pull", *wanted],
        s3_connection=S3_CONNECTION,
    )
    scan = CommandOperator(
        task_id="scan",
        queue="cpu",
        command=["music-genre", "scan", "--audio", "{{ ti.xcom_pull('pull')['audio'] }}"],
        asset=DATA_SET,
    )
    catalogue = ["--catalogue", "{{ ti.xcom_pull('scan')['catalogue'] }}"]
    extract = CommandOperator.partial(
        task_id="extract", queue="cpu", map_index_template="shard {{ task.command[-1] }}"
    ).expand(
        command=[
            ["music-genre", "extract", *catalogue, "--shard", f"{shard}/{N_SHARDS}"]
            for shard in range(1, N_SHARDS + 1)
        ]
    )
    images = ["--images", "{{ ti.xcom_pull('extract', map_indexes=0)['images'] }}"]
    split = CommandOperator(
        task_id="split",
        queue="cpu",
        command=["music-genre", "split", *catalogue, *images, "--seed", split_seed],
        asset=FEATURES,
    )
    pull >> scan >> extract >> split
    return split


def train_command(split: str, model: Any, seed: Any, others: Callable[[str], Any]) -> list[str]:
    """The words that train a model.

    Args:
        split: address of the split.
        model: torchvision's name.
        seed: of weights and order.
        others: answers with the run's other parameters by name.
    """
    words = [
        *("music-genre", "train", "--split", split, "--model", model, "--seed", seed),
        *("--optimizer", others("optimizer"), "--criterion", others("criterion")),
        *("--epochs", others("epochs"), "--learning-rate", others("learning_rate")),
    ]
    return [str(word) for word in words]


def publish(run: str, data_version: str = "") -> CommandOperator:
    """Add the task `publish` of a trained and measured model.

    Args:
        run: address of the run folder.
        data_version: what `pull` said of the data; empty where nothing was pulled.
    """
    origin = ["--airflow-run", "{{ dag.dag_id }}/{{ run_id }}"]
    data = ["--data-version", data_version] if data_version else []
    return CommandOperator(
        task_id="publish",
        queue="cpu",
        pool=PUBLISHING_POOL,
        command=["music-genre", "publish", "--run", run, *origin, *data],
        asset=PUBLISHED_MODEL,
        s3_connection=S3_CONNECTION,
    )
