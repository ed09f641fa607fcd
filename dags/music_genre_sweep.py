"""Train one candidate for each pair of torchvision model and seed, on as many GPUs as there are.

The tasks up to `split` are the same as in `music_genre_training`, and each of the two DAGs reuses
the artifacts that the other has made. `plan` lists the trainings. `train` and `evaluate` are mapped
over that list. Each training takes one GPU slot; if no slot is free, the training waits in the
pool. If a mapped task fails, only its own candidate fails. In the grid, each mapped task is
labelled with its model and seed.

All candidates are evaluated on the same split. The last task, `compare`, logs one line for each
candidate, the best validation accuracy first, and returns these lines as a table. Choose by
validation accuracy, because choosing by test accuracy would overfit to the test set. This DAG
publishes no model.

Each candidate takes as long as `train` and `evaluate` in a run of `music_genre_training`. With
resnet18 an epoch of the demo music took 20 s on two cores; an H200 trained 1,990 crops a second.
"""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task, task_group
from airflow.sdk.exceptions import AirflowSkipException

from fleet.comparison import in_words, ranked
from fleet.pipeline import (
    MODEL,
    SEED,
    evaluate,
    given,
    model_names,
    parameters,
    preprocess,
    train,
)

THIS = "ti.xcom_pull('plan')[ti.map_index]"
NAME = f"{{{{ {THIS}['model'] }}}}, seed {{{{ {THIS}['seed'] }}}}"


@task(queue="cpu")
def plan(params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """List all trainings: every model with every seed."""
    wanted = params or {}
    return [
        {"model": model, "seed": str(seed)}
        for model in wanted["models"]
        for seed in numbers(wanted["seeds"])
    ]


def numbers(seeds: str | list[float]) -> list[int]:
    """Read seeds from a list or from the form's comma-separated text; duplicates are dropped."""
    listed = seeds.split(",") if isinstance(seeds, str) else seeds
    return list(dict.fromkeys(map(int, listed)))


@task_group(prefix_group_id=False)
def candidate(model: Any, seed: Any) -> None:
    """Train and evaluate one candidate."""
    trained = train(model, seed, map_index_template=NAME)
    trained >> evaluate(", map_indexes=ti.map_index", map_index_template=NAME)


@task(queue="cpu")
def compare(ti: Any = None) -> list[dict[str, Any]]:
    """Log each candidate's accuracies and run folder, the best validation accuracy first.

    Raises:
        AirflowSkipException: the run failed before its first training.
    """
    candidates = ti.xcom_pull("plan")
    if candidates is None:
        raise AirflowSkipException("no candidate was trained; see the log of the failed task")
    every = range(len(candidates))
    results = (ti.xcom_pull(name, map_indexes=every) for name in ("train", "evaluate"))
    table = ranked(candidates, *results)
    for row in table:
        logging.getLogger(__name__).info(in_words(row))
    return table


LIST: dict[str, Any] = {"minItems": 1, "uniqueItems": True}
"""Limits of a list parameter: at least one entry, no duplicates."""
SEEDS = Param(
    "0, 1, 2, 3",
    type=["string", "array"],  # with "array" alone, the form would show a JSON editor
    pattern=r"^ *[0-9]{1,9}( *, *[0-9]{1,9})* *$",
    items={"type": "integer", **SEED},
    title="Seeds",
    description="Numbers from 0 to 999,999,999, separated by commas. Each model is trained once "
    "per seed: two models and four seeds make eight trainings.",
    **LIST,
)
MODELS = Param(
    ["resnet18"],
    type="array",
    items={"type": "string", **MODEL},
    examples=model_names(),
    title="Models",
    description="One or more names of torchvision models, such as resnet18 and shufflenet_v2_x0_5.",
    **LIST,
)

with DAG(
    "music_genre_sweep",
    schedule=None,
    is_paused_upon_creation=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    params=parameters(models=MODELS, seeds=SEEDS),
    doc_md=__doc__,
    tags=["music-genre"],
):
    listed = plan()
    preprocess(models=given("models", " | join(',')")) >> listed
    # As a teardown, `compare` runs even after a failed task, and does not affect the run's state.
    candidate.expand_kwargs(listed) >> compare().as_teardown()
