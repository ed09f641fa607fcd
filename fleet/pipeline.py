"""The run parameters and the tasks that the training DAGs share."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, Context, Param
from airflow.sdk.exceptions import AirflowFailException

from fleet.contract import queues
from fleet.operators.command import CommandOperator

DATA_SET = Asset("music_genre_data_set")
"""Gets an event when `scan` makes a new catalogue."""
FEATURES = Asset("music_genre_features")
"""Gets an event when `split` makes a new split, of new or of existing images."""
PUBLISHED_MODEL = Asset("music_genre_model")
"""Gets an event when a model is published. The event holds the model's name, commit and metrics."""
S3_CONNECTION = "music_genre_s3"
"""Airflow connection with the DVC remote's credentials; if it is not defined, the worker's own
credentials apply."""
N_SHARDS = 4  # number of `extract` tasks; tasks beyond the number of CPU slots would only wait
GPU_QUEUES = [queue.name for queue in queues().values() if queue.resource == "gpu"]
MODELS = Path(__file__).parent.parent / "music_genre" / "torchvision_models.txt"
"""File with the model names that the DAGs' trigger forms offer. `music-genre check` also reads the
file, to suggest similar names."""
MODEL: dict[str, Any] = {"pattern": "^[a-z0-9_]+$"}
SEED: dict[str, Any] = {"minimum": 0, "maximum": 999_999_999}
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")


def model_names() -> list[str]:
    """Read the names of torchvision's classification models."""
    return MODELS.read_text(encoding="utf-8").split()


def chosen(default: str, title: str, text: str, choices: Sequence[str]) -> Param:
    """A parameter with a fixed list of choices."""
    return Param(default, type="string", title=title, description=text, enum=list(choices))


def whole_number(default: int, title: str, text: str, limits: dict[str, Any]) -> Param:
    """An integer parameter; its description states its limits."""
    told = f"{text} {limits['minimum']:,} to {limits['maximum']:,}."
    return Param(default, type="integer", title=title, description=told, **limits)


def model() -> Param:
    """The parameter that names the model to train."""
    text = (
        "A torchvision classification model; clear the field to see all names. Larger models take "
    )
    text += "longer and need more GPU memory; shufflenet_v2_x0_5 is quick on a CPU."
    limits = {**MODEL, "examples": model_names()}
    return Param("resnet18", type="string", title="Model", description=text, **limits)


def seed() -> Param:
    """The seed of a training; it distinguishes trainings whose other settings are equal."""
    return whole_number(0, "Seed", "Sets the initial weights and the order of the crops.", SEED)


def split_seed() -> Param:
    """The seed that decides which recordings are for training, validation and test."""
    text = "Decides which recordings are in the test set. Keep it unchanged to compare runs."
    return whole_number(0, "Split seed", text, SEED)


def training_parameters(optimizers: Sequence[str] = OPTIMIZERS) -> dict[str, Param]:
    """The parameters of every training, in a process or in a container."""
    epochs = {"minimum": 1, "maximum": 10_000}
    criteria = ("cross_entropy", "focal")
    larger = "Choose a queue with larger GPUs if the training runs out of GPU memory."
    return {
        "epochs": whole_number(30, "Epochs", "Passes over all training tracks.", epochs),
        "optimizer": chosen("sgd", "Optimizer", "sgd uses Nesterov momentum.", optimizers),
        "criterion": chosen("cross_entropy", "Criterion", "The loss function.", criteria),
        "split_seed": split_seed(),
        "gpu_queue": chosen(GPU_QUEUES[0], "Training queue", larger, GPU_QUEUES),
    }


def parameters(**own: Param) -> dict[str, Param]:
    """Build a DAG's run parameters: for the data, for this DAG only (`own`) and for every training.

    Optional fields default to null, because Airflow's form treats an empty string as a missing
    value.
    """
    data = Param(
        os.environ.get("MUSIC_GENRE_AUDIO", "/data/genres_original"),
        type="string",
        minLength=1,
        title="Data address",
        description="A folder that the workers can read, with one subfolder of audio files per "
        "genre; or dvc:PATH for data in the Git repository of versions.",
    )
    revision = Param(
        None,
        type=["null", "string"],
        title="Data revision",
        description="Branch, tag or commit of the data at dvc:PATH; empty: the newest version. "
        "Leave this field empty if the data address is a folder.",
    )
    rate = Param(
        None,
        type=["null", "number"],
        minimum=0,
        maximum=10,
        title="Learning rate",
        description="Peak of the one-cycle schedule, 0 to 10; empty or 0: the optimizer's default.",
    )
    return {
        "audio": data,
        "revision": revision,
        **own,
        **training_parameters(),
        "learning_rate": rate,
    }


def given(name: str, then: str = "") -> str:
    """Return a template that inserts a run parameter; `then` extends the Jinja expression."""
    return f"{{{{ params.{name}{then} }}}}"


def whole(name: str) -> str:
    """Return a template that inserts an integer parameter: 3.0 in JSON is inserted as 3."""
    return given(name, " | int")


def result_of(task_id: str, key: str, more: str = "") -> str:
    """Return a template that inserts a value from an earlier task's result.

    The value is empty if the task has no result, for example because somebody marked the task as
    successful.
    """
    return f"{{{{ (ti.xcom_pull('{task_id}'{more}) or {{}}).get('{key}', '') }}}}"


TRAINING = (
    *("--optimizer", given("optimizer"), "--criterion", given("criterion")),
    *("--epochs", whole("epochs")),
)
DATA = ("--data", given("audio"), "--revision", given("revision", " or ''"))
RATE = ("--learning-rate", given("learning_rate", " or 0"))


def check(models: str, *options: str) -> CommandOperator:
    """Add `check`, the first task of a run, which refuses input that a later task could not use.

    Args:
        models: the names of the models to train, separated by commas.
        options: further options of later tasks, which `check` checks too.
    """
    return CommandOperator(
        task_id="check",
        queue="cpu",
        command=["music-genre", "check", "--models", models, *TRAINING, *options],
        pre_execute=refuse_unknown_names,
    )


def refuse_unknown_names(context: Context) -> None:
    """Fail a run that was given an unknown parameter; Airflow alone would ignore the parameter.

    Raises:
        AirflowFailException: a parameter is unknown; the message suggests a similar name.
    """
    known = list(context["dag"].params)
    for name in context["dag_run"].conf or {}:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1) or [f"one of {', '.join(known)}"]
            raise AirflowFailException(f"run parameter {name!r} is unknown; write {near[0]}")


def preprocess(models: str) -> CommandOperator:
    """Add `check` → `pull` → `scan` → `extract` (in parallel shards) → `split`; returns `split`.

    Args:
        models: the names of the models to train, separated by commas.
    """
    pull = CommandOperator(
        task_id="pull",
        queue="cpu",
        command=["music-genre", "pull", *DATA],
        s3_connection=S3_CONNECTION,
    )
    scan = CommandOperator(
        task_id="scan",
        queue="cpu",
        command=["music-genre", "scan", "--audio", result_of("pull", "audio")],
        asset=DATA_SET,
    )
    catalogue = ["--catalogue", result_of("scan", "catalogue")]
    extract = CommandOperator.partial(
        task_id="extract", queue="cpu", map_index_template="shard {{ task.command[-1] }}"
    ).expand(
        command=[
            ["music-genre", "extract", *catalogue, "--shard", f"{shard}/{N_SHARDS}"]
            for shard in range(1, N_SHARDS + 1)
        ]
    )
    images = ["--images", result_of("extract", "images", ", map_indexes=0")]
    dealt_by = ["--seed", whole("split_seed")]
    split = CommandOperator(
        task_id="split",
        queue="cpu",
        command=["music-genre", "split", *catalogue, *images, *dealt_by],
        asset=FEATURES,
    )
    check(models, *DATA, *RATE) >> pull >> scan >> extract >> split
    return split


def train(model: Any, seed: Any, **arguments: Any) -> CommandOperator:
    """Add the task `train`.

    Args:
        model: torchvision's name of the model.
        seed: sets the initial weights and the order of the crops.
        arguments: further arguments of the operator.
    """
    words = ["music-genre", "train", "--split", result_of("split", "split")]
    words += ["--model", model, "--seed", seed, *TRAINING, *RATE]
    return CommandOperator(task_id="train", queue="gpu", command=words, **arguments)


def evaluate(more: str = "", **arguments: Any) -> CommandOperator:
    """Add the task `evaluate` for the run folder that `train` returned.

    Args:
        more: further arguments of `xcom_pull`, which select one of several trainings.
        arguments: further arguments of the operator.
    """
    words = ["music-genre", "evaluate", "--run", result_of("train", "run", more)]
    return CommandOperator(task_id="evaluate", queue="gpu", command=words, **arguments)


def publish(run: str, data_version: str = "") -> CommandOperator:
    """Add the task `publish` for a trained and evaluated model.

    Args:
        run: address of the run folder.
        data_version: the data's version as `pull` returned it; empty if nothing was pulled.
    """
    origin = ["--airflow-run", "{{ dag.dag_id }}/{{ run_id }}"]
    data = ["--data-version", data_version] if data_version else []
    return CommandOperator(
        task_id="publish",
        queue="cpu",
        command=["music-genre", "publish", "--run", run, *origin, *data],
        asset=PUBLISHED_MODEL,
        s3_connection=S3_CONNECTION,
    )
