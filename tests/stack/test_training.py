"""A whole run in the containers: from music to a model and logs."""

import json
import subprocess
import urllib.request
from base64 import b64encode

import pytest
from conftest import FAST, NAME, containers_of, finish, inside, wait_until

from deploy.airflow_api import path
from deploy.containers import environment
from deploy.demo import trigger
from deploy.places import TRAINING_DAG
from deploy.running import ask

pytestmark = pytest.mark.timeout(900)


def test_a_training_on_the_demo_music_succeeds_on_the_right_workers(run):
    rows = run.rows()
    assert {row.state for row in rows} == {"success"}
    assert all(row.worker.startswith(f"{row.queue}@") for row in rows)
    assert run.result("evaluate")["n_tracks"] > 30


def test_flower_shows_no_arguments_of_tasks(stack, run, project):
    """The arguments hold the token with which a task reports to Airflow."""
    password = environment.read(project.env_file)["FLOWER_PASSWORD"]
    login = b64encode(f"admin:{password}".encode()).decode()

    def ask_flower(route: str) -> str:
        request = urllib.request.Request(stack.flower_address + route)
        request.add_header("Authorization", f"Basic {login}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()

    slow = trigger(stack, {**FAST, "epochs": 200, "seed": 5})
    wait_until(lambda: any(row.name == "train" and row.worker for row in slow.rows()))
    tasks = json.loads(ask_flower("/api/tasks"))
    shown = "".join(map(ask_flower, ("/api/workers?refresh=1", "/tasks", "/workers")))
    stack.api.patch(path("dags", TRAINING_DAG, "dagRuns", slow.run_id), {"state": "failed"})
    assert "execute_workload" in {task["name"] for task in tasks.values()}
    words = {(task["args"], task["kwargs"]) for task in tasks.values()}
    assert {word.strip("'") for pair in words for word in pair if word} == {"hidden"}
    assert "execute_workload" in shown
    for text in (json.dumps(tasks), shown):
        assert "eyJ" not in text  # every JSON web token begins with eyJ
        assert "token" not in text.lower().replace("csrf", "").replace("_xsrf", "")


@pytest.mark.soak
def test_more_workers_share_the_shards_and_nothing_is_done_twice(stack, project):
    # Memory for one slot only, so that no worker can take a second shard.
    with project.env_file.open("a") as file:
        file.write("CPU_WORKER_MEMORY=1900m\n")
    scaled = ("--scale", "cpu-worker=3", "--scale", "scheduler=2")
    project.compose("up", "-d", "--no-build", "--wait", *scaled)
    wait_until(lambda: ask(stack.is_healthy) and len(stack.online_workers()) == 4)
    inside("cpu-worker", "sh", "-c", "rm -rf /artifacts/*")
    run = trigger(stack, {**FAST, "seed": 6})
    assert finish(run) == "success", run.rows()
    rows = run.rows()
    shards = [row for row in rows if row.name.startswith("extract")]
    workers = {row.worker for row in shards}
    assert len(workers) == 3
    assert sum(run.result("extract", shard)["n_extracted"] for shard in range(4)) == 203
    tries = stack.api.get(f"{path('dags', TRAINING_DAG, 'dagRuns', run.run_id)}/taskInstances")
    assert {each["try_number"] for each in tries["task_instances"]} == {1}
    assert len(containers_of("cpu-worker")) == 3
    assert len(containers_of("scheduler")) == 2
    # One worker and one scheduler are enough for the following tests; `make up` would keep all.
    project.compose("up", "-d", "--no-build", "--scale", "cpu-worker=1", "--scale", "scheduler=1")


def test_the_first_programs_command_line_runs_in_its_image(stack, run, tmp_path):
    """`--images_path` takes a folder with one folder of PNG pictures for each genre."""
    images = tmp_path / "images"
    images.mkdir()
    source = run.result("extract", 0)["images"]
    worker = f"{NAME}-cpu-worker-1"
    subprocess.run(["docker", "cp", f"{worker}:{source}/.", str(images)], check=True)
    for genre in (each for each in images.iterdir() if each.is_dir()):
        for picture in sorted(genre.iterdir())[8:]:
            picture.unlink()
    (tmp_path / "checkpoints").mkdir(mode=0o777)
    (tmp_path / "checkpoints").chmod(0o777)
    line = (
        "python3 __main__.py train-using-image-features --model shufflenet_v2_x0_5 "
        "--criterion cross_entropy --optimizer sdg --checkpoints_path /checkpoints "
        "--images_path /images --epochs 1"
    )
    words = ["docker", "run", "--rm", "-v", f"{images}:/images:ro"]
    words += ["-v", f"{tmp_path / 'checkpoints'}:/checkpoints", "--tmpfs", "/tmp"]
    ended = subprocess.run(
        [*words, "music-genre-classif:test", *line.split()], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert list((tmp_path / "checkpoints").rglob("checkpoint-*.pt"))
