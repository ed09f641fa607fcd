"""What the training DAGs share: the form's parameters, and the way from audio to a split."""

import os
from collections.abc import Callable
from typing import Any

from airflow.sdk import Param

from fleet.contract import queues
from fleet.operators import CommandOperator

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
        description="Folder with one folder of audio files per genre.",
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
    return {"audio": data, **own, **shared}


def preprocess(split_seed: str) -> CommandOperator:
    """Add the tasks `scan` → `extract` (in shards side by side) → `split`; returns the last."""
    scan = CommandOperator(
        task_id="scan",
        queue="cpu",
        command=["music-genre", "scan", "--audio", "{{ params.audio }}"],
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
    )
    scan >> extract >> split
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
