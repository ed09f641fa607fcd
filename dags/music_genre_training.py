"""Train and evaluate a music-genre model, the Python-operator way: each task is one command.

`pull` (the data at their version) → `scan` (catalogue) → `extract` (mel-spectrogram images, in
shards side by side) → `split` (by recording) on the **cpu** queue; → `train` (a torchvision CNN) →
`evaluate` (accuracy with its interval, confusion matrix) on the **gpu** queue; → `publish` (bytes
to the DVC remote, and a commit that says what the model comes from) on the **cpu** queue.

A step whose inputs and settings are unchanged finds its former output and does no work, so a daily
run over the same music is short and publishes nothing. Results lie in the artifacts folder, at the
addresses that each task returns.
"""

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, Param

from fleet.operators import CommandOperator
from fleet.pipeline import MODEL, SEED, parameters, preprocess, publish, train_command

with DAG(
    "music_genre_training",
    # The one place for the schedule. timedelta(0): wait for midnight rather than catch up on it.
    schedule=CronTriggerTimetable("@daily", timezone="UTC", run_immediately=timedelta(0)),
    is_paused_upon_creation=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    params=parameters(
        model=Param(
            "resnet18",
            type="string",
            title="Model",
            description="Any torchvision classification model by its name.",
            **MODEL,
        ),
        seed=Param(0, type="integer", **SEED),
    ),
    doc_md=__doc__,
    tags=["music-genre"],
):
    split = preprocess(split_seed="{{ params.seed }}")

    train = CommandOperator(
        task_id="train",
        queue="gpu",
        command=train_command(
            "{{ ti.xcom_pull('split')['split'] }}",
            "{{ params.model }}",
            "{{ params.seed }}",
            lambda name: f"{{{{ params.{name} }}}}",
        ),
    )

    evaluate = CommandOperator(
        task_id="evaluate",
        queue="gpu",
        command=["music-genre", "evaluate", "--run", "{{ ti.xcom_pull('train')['run'] }}"],
    )

    (
        split
        >> train
        >> evaluate
        >> publish("{{ ti.xcom_pull('train')['run'] }}", "{{ ti.xcom_pull('pull')['version'] }}")
    )
