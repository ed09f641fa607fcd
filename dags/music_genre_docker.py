"""Train and evaluate a music-genre model, the Docker way: gpu tasks run in Docker containers.

`check` (refuses input that cannot work) on the **cpu** queue → `create-image-features-from-audio`
(a mel-spectrogram image of every track) → `train-using-image-features` (split, training,
evaluation) on the **gpu** queue → `publish` (uploads the model to the DVC remote, then pushes a Git
commit that names the model) on the **cpu** queue. Each task on the **gpu** queue runs a command of
this project's first program in a container of the Docker image `music-genre-classif`.

This DAG is paused by default, because `music_genre_training` does the same work, and because only a
stack started with `make up DOCKER=1` can start containers. If a container outlives its worker, the
task's next try waits for that container. If a container was stopped, the next try starts a new
container, which continues from the checkpoint.

A run takes as long as a run of `music_genre_training` that trains a model (see that DAG). Each run
of this DAG trains a new model, even if nothing has changed. Like that DAG, this DAG publishes the
model and its metrics under a tag of the repository.
"""

import os
from datetime import timedelta

from airflow.sdk import DAG, Param

from fleet.contract import GPU_LOCKS
from fleet.operators.docker import ResumableDockerOperator
from fleet.pipeline import (
    OPTIMIZERS,
    TRAINING,
    check,
    given,
    model,
    publish,
    seed,
    training_parameters,
    whole,
)
from fleet.timetable import daily

PROGRAM = ("python3", "__main__.py")
AUDIO = "/data/genres_original"
IMAGES = "/artifacts/docker/images"
RUN = "/artifacts/docker/{{ run_id.replace(':', '').replace('+', '_') }}"


def in_container(task_id: str, *options: str, volumes: tuple[str, ...]) -> ResumableDockerOperator:
    """Add a task that runs the first program's command of the same name in a container."""
    return ResumableDockerOperator(
        task_id=task_id,
        queue="gpu",
        image=os.environ.get("MUSIC_GENRE_IMAGE", "music-genre-classif:latest"),
        command=[*PROGRAM, task_id, *options],
        volumes=volumes,
    )


def parameters() -> dict[str, Param]:
    """Build the run parameters: the settings of the first program's training command."""
    return {"model": model(), "seed": seed(), **training_parameters((*OPTIMIZERS, "sdg"))}


with DAG(
    "music_genre_docker",
    schedule=daily(),
    is_paused_upon_creation=True,
    max_active_runs=1,  # because all runs write to the same folder of images
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    params=parameters(),
    doc_md=__doc__,
    tags=["music-genre", "needs DOCKER=1"],
):
    images = in_container(
        "create-image-features-from-audio",
        *("--path_with_audios_dir", AUDIO, "--path_to_image", IMAGES),
        volumes=("/artifacts", AUDIO),
    )
    train = in_container(
        "train-using-image-features",
        *("--model", given("model"), *TRAINING, "--seed", whole("seed")),
        *("--split-seed", whole("split_seed")),
        *("--checkpoints_path", RUN, "--images_path", IMAGES),
        volumes=("/artifacts", GPU_LOCKS),
    )
    check(given("model"), "--data", AUDIO) >> images >> train >> publish(RUN)
