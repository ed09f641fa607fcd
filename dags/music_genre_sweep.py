"""Train one model for each of some torchvision names and seeds, on as many GPUs as there are.

The way to the split is that of `music_genre_training`, and so are its artifacts: what one has made,
the other finds. `candidates` lists the trainings; `train` is mapped over them, so each takes a GPU
slot of its own and the rest wait in the pool; `evaluate` measures each. The grid's map index names
model and seed. All candidates are measured on one split, dealt with seed 0. To choose by the test
accuracy would be to fit the test set: compare the validation accuracy, which `train` returns.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task

from fleet.operators import CommandOperator
from fleet.pipeline import MODEL, SEED, parameters, preprocess, train_command


@task(queue="cpu")
def candidates(split: str, params: dict[str, Any] | None = None) -> list[list[str]]:
    """List the commands of all trainings: every model with every seed."""
    given = params or {}
    return [
        train_command(split, model, seed, given.get)
        for model in given["models"]
        for seed in given["seeds"]
    ]


def every(default: list[Any], item: dict[str, Any], title: str, what: str) -> Param:
    """A parameter that is a list, of which every item is tried."""
    limits: dict[str, Any] = {"type": "array", "items": item, "minItems": 1, "uniqueItems": True}
    return Param(default, title=title, description=f"{what}, one a line", **limits)


with DAG(
    "music_genre_sweep",
    schedule=None,
    is_paused_upon_creation=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    params=parameters(
        models=every(["resnet18"], {"type": "string", **MODEL}, "Models", "torchvision's names"),
        seeds=every([0, 1, 2, 3], {"type": "integer", **SEED}, "Seeds", "of weights and order"),
    ),
    doc_md=__doc__,
    tags=["music-genre"],
):
    split = preprocess(split_seed="0")
    listed = candidates("{{ ti.xcom_pull('split')['split'] }}")

    train = CommandOperator.partial(
        task_id="train",
        queue="gpu",
        map_index_template="{{ task.command[5] }}, seed {{ task.command[7] }}",
    ).expand(command=listed)

    evaluate = CommandOperator.partial(
        task_id="evaluate", queue="gpu", map_index_template="{{ task.command[-1].split('/')[-1] }}"
    ).expand(
        command=train.output.map(
            lambda trained: ["music-genre", "evaluate", "--run", trained["run"]]
        )
    )

    split >> listed
