"""Train and evaluate a music-genre model, the Python-operator way: each task is one command.

Audio → `scan` (catalogue) → `extract` (mel-spectrogram images, in shards side by side) → `split`
(by recording) on the **cpu** queue; → `train` (a torchvision CNN) → `evaluate` (accuracy with its
interval, confusion matrix) on the **gpu** queue.

A step whose inputs and settings are unchanged finds its former output and does no work, so a daily
run over the same music is short. Results lie in the artifacts folder, at the addresses that each
task returns.
"""

import os
from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, Param

from fleet.contract import queues
from fleet.operators import CommandOperator

GPU_QUEUES = [queue.name for queue in queues().values() if queue.resource == "gpu"]
N_SHARDS = 4  # extract's tasks; more than the CPU workers' slots only waits

with DAG(
    "music_genre_training",
    # The one place for the schedule. timedelta(0): wait for midnight rather than catch up on it.
    schedule=CronTriggerTimetable("@daily", timezone="UTC", run_immediately=timedelta(0)),
    is_paused_upon_creation=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    params={
        "audio": Param(
            os.environ.get("MUSIC_GENRE_AUDIO", "/data/genres_original"),
            type="string",
            minLength=1,
            title="Data address",
            description="Folder with one folder of audio files per genre.",
        ),
        "model": Param(
            "resnet18",
            type="string",
            pattern="^[a-z0-9_]+$",
            examples=["resnet18", "resnet50", "efficientnet_b0", "convnext_tiny", "densenet121"],
            title="Model",
            description="Any torchvision classification model by its name.",
        ),
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
        "seed": Param(0, type="integer", minimum=0, maximum=2**31 - 1),
        "gpu_queue": Param(
            GPU_QUEUES[0],
            type="string",
            enum=GPU_QUEUES,
            title="Queue of the training",
            description="One of larger GPUs for what is out of memory on others.",
        ),
    },
    doc_md=__doc__,
    tags=["music-genre"],
):
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
        command=["music-genre", "split", *catalogue, *images, "--seed", "{{ params.seed }}"],
    )

    train = CommandOperator(
        task_id="train",
        queue="gpu",
        command=[
            *("music-genre", "train", "--split", "{{ ti.xcom_pull('split')['split'] }}"),
            *("--model", "{{ params.model }}", "--optimizer", "{{ params.optimizer }}"),
            *("--criterion", "{{ params.criterion }}", "--epochs", "{{ params.epochs }}"),
            *("--learning-rate", "{{ params.learning_rate }}", "--seed", "{{ params.seed }}"),
        ],
    )

    evaluate = CommandOperator(
        task_id="evaluate",
        queue="gpu",
        command=["music-genre", "evaluate", "--run", "{{ ti.xcom_pull('train')['run'] }}"],
    )

    scan >> extract >> split >> train >> evaluate
