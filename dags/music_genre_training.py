"""Train and evaluate a music-genre model: each task is one command on a worker.

`check` (refuses input that cannot work) → `pull` (the requested version of the data) → `scan`
(catalogue) → `extract` (mel-spectrogram images, in parallel shards) → `split` (by recording) on the
**cpu** queue → `train` (a torchvision CNN) → `evaluate` (accuracy with its confidence
interval, confusion matrix) on the **gpu** queue → `publish` (uploads the model to the DVC remote,
then pushes a Git commit that records the model's origin) on the **cpu** queue.

Training takes most of the time. With resnet18 an epoch of the demo music took 20 s on two cores;
an H200 trained 1,990 crops a second. A 30 s track has ten crops.

A step whose inputs and settings are unchanged reuses its earlier output and does no work, so a
daily run over the same music is short and publishes nothing. The results are in the artifact
folder, at the addresses that the tasks return.
"""

from datetime import timedelta

from airflow.sdk import DAG

from fleet.pipeline import (
    evaluate,
    given,
    model,
    parameters,
    preprocess,
    publish,
    result_of,
    seed,
    train,
    whole,
)
from fleet.timetable import daily

with DAG(
    "music_genre_training",
    schedule=daily(),
    is_paused_upon_creation=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    params=parameters(model=model(), seed=seed()),
    doc_md=__doc__,
    tags=["music-genre"],
):
    (
        preprocess(models=given("model"))
        >> train(given("model"), whole("seed"))
        >> evaluate()
        >> publish(result_of("train", "run"), result_of("pull", "version"))
    )
