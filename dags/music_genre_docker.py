"""Train and evaluate a music-genre model, the Docker way: each task is a container of one image.

`check` (refuses what cannot work, on the **cpu** queue) → `create-image-features-from-audio` (a
mel-spectrogram image of every track) →
`train-using-image-features` (split, training, evaluation), each the first program's own command
line in the image `music-genre-classif`, on the **gpu** queue; → `publish` (bytes to the DVC remote,
then a commit that names them) on the **cpu** queue.

Paused until you want it: `music_genre_training` does the same work, and only a stack started with
`make up DOCKER=1` has the engine for containers. A container that outlived its worker is followed
by the task's next try; one that was stopped goes on from its checkpoint.

It takes as long as `music_genre_training`, which says how long that is, and trains anew each time.
What it publishes is what that DAG publishes: a model with its metrics, tagged in the repository.
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
    """A task that runs the program's command of its name."""
    return ResumableDockerOperator(
        task_id=task_id,
        queue="gpu",
        image=os.environ.get("MUSIC_GENRE_IMAGE", "music-genre-classif:latest"),
        command=[*PROGRAM, task_id, *options],
        volumes=volumes,
    )


def parameters() -> dict[str, Param]:
    """The form of a run: what the first program's training is told."""
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
