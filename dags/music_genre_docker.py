"""Train and evaluate a music-genre model, the Docker way: the work runs in containers of one image.

`check` (refuses input that cannot work) on the **cpu** queue → `create-image-features-from-audio`
(a mel-spectrogram image of every track) → `train-using-image-features` (split, training,
evaluation) on the **gpu** queue → `publish` (bytes to the DVC remote, then a commit that names
them) on the **cpu** queue. Each task on the **gpu** queue is a container of the image
`music-genre-classif` and runs the first program's own command line.

Paused by default: `music_genre_training` does the same work, and only a stack started with
`make up DOCKER=1` can start containers. If a container outlives its worker, the task's next try
follows it; if a container was stopped, the next try continues from its checkpoint.

It takes as long as `music_genre_training` (see there) and trains from scratch each time. It
publishes what that DAG publishes: a model with its metrics, tagged in the repository.
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
