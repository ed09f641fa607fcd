"""Train and evaluate a music-genre model, the Docker way: the work runs in Docker containers.

`check` (refuses input that cannot work) on the **cpu** queue → `create-image-features-from-audio`
(a mel-spectrogram image of every track) → `train-using-image-features` (split, training,
evaluation) on the **gpu** queue → `publish` (bytes to the DVC remote, then a commit that names
them) on the **cpu** queue. Each task on the **gpu** queue runs in a container of the Docker image
`music-genre-classif`, with the command line of this project's first program.

Paused by default: `music_genre_training` does the same work, and only a stack started with
`make up DOCKER=1` can start containers. If a container outlives its worker, the task's next try
follows it; if a container was stopped, the next try continues from its checkpoint.

This DAG takes as long as `music_genre_training` (see there) and trains from scratch in each run.
Like that DAG, it publishes a model with its metrics, tagged in the repository.
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
    """Add a task that runs, in a container, the program's command named like the task."""
    return ResumableDockerOperator(
        task_id=task_id,
        queue="gpu",
        image=os.environ.get("MUSIC_GENRE_IMAGE", "music-genre-classif:latest"),
        command=[*PROGRAM, task_id, *options],
        volumes=volumes,
    )


def parameters() -> dict[str, Param]:
    """The parameters of a run's form: the settings of the first program's training."""
    return {"model": model(), "seed": seed(), **training_parameters((*OPTIMIZERS, "sdg"))}


with DAG(
    "music_genre_docker",
    schedule=daily(),
    is_paused_upon_creation=True,
    max_active_runs=1,  # its runs share the images
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
