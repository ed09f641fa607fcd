"""Train one model for each of some torchvision names and seeds, on as many GPUs as there are.

The way to the split is that of `music_genre_training`, and so are its artifacts: what one has made,
the other finds. `candidates` lists the trainings; `train` and `evaluate` are mapped over them, so
each training takes a GPU slot of its own, the rest wait in the pool, and one that fails ends its
own candidate alone. The grid's map index names model and seed. All candidates are measured on one
split. To choose by the test accuracy would be to fit the test set: compare the validation accuracy,
which `train` returns. Nothing is published.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task, task_group

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

THIS = "ti.xcom_pull('candidates')[ti.map_index]"
NAME = f"{{{{ {THIS}['model'] }}}}, seed {{{{ {THIS}['seed'] }}}}"


@task(queue="cpu")
def candidates(params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """List all trainings: every model with every seed."""
    wanted = params or {}
    return [
        {"model": model, "seed": str(int(seed))}
        for model in wanted["models"]
        for seed in wanted["seeds"]
    ]


@task_group(prefix_group_id=False)
def candidate(model: Any, seed: Any) -> None:
    """Train one and measure it."""
    trained = train(model, seed, map_index_template=NAME)
    trained >> evaluate(", map_indexes=ti.map_index", map_index_template=NAME)


def every(default: list[Any], items: dict[str, Any], title: str, text: str, **more: Any) -> Param:
    """A parameter that is a list, of which every item is tried."""
    limits: dict[str, Any] = {"type": "array", "minItems": 1, "uniqueItems": True, **more}
    return Param(default, title=title, description=text, items=items, **limits)


with DAG(
    "music_genre_sweep",
    schedule=None,
    is_paused_upon_creation=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    params=parameters(
        models=every(
            ["resnet18"],
            {"type": "string", **MODEL},
            "Models",
            "Torchvision's names, such as resnet18 and shufflenet_v2_x0_5; one at least.",
            examples=model_names(),
        ),
        seeds=every(
            [0, 1, 2, 3],
            {"type": "integer", **SEED},
            "Seeds",
            "Each model is trained with each: [0, 1, 2, 3]. 0 to 2,147,483,647.",
        ),
    ),
    doc_md=__doc__,
    tags=["music-genre"],
):
    listed = candidates()
    preprocess(models=given("models", " | join(',')")) >> listed
    candidate.expand_kwargs(listed)
