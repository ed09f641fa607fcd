"""The Docker way, with the stack's own S3: containers outlive their worker."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator

import pytest
from conftest import NAME, container, finish, inside, inspect, log_of, wait_until

from deploy.airflow_api import path
from deploy.containers import environment
from deploy.containers.stack import ComposeStack
from deploy.demo import Run, trigger
from tests.gpu_trainings import TENS

pytestmark = pytest.mark.timeout(1800)
DAG = "music_genre_docker"
TRAIN = "train-using-image-features"
SEEDS = {"model": "shufflenet_v2_x0_5", "criterion": "cross_entropy", "optimizer": "sdg"}
OURS = f"label=music-genre.stack={NAME}"
GONE_SECONDS = 15


@pytest.fixture(scope="module")
def with_docker(stack):
    """The shared stack with its Docker DAG unpaused."""
    stack.api.patch(path("dags", DAG), {"is_paused": False})
    yield stack
    stack.api.patch(path("dags", DAG), {"is_paused": True})
    for each in stack.api.get(f"{path('dags', DAG, 'dagRuns')}?state=running")["dag_runs"]:
        stack.api.patch(path("dags", DAG, "dagRuns", each["dag_run_id"]), {"state": "failed"})
    wait_until(lambda: not containers(running=True), 30)


def start(stack: ComposeStack, epochs: int, seed: int = 0) -> Run:
    return trigger(stack, SEEDS | {"epochs": epochs, "seed": seed}, DAG)


def containers(*, running: bool = False) -> list[dict]:
    """The output of `docker inspect` for the containers of this stack's tasks."""
    words = ["docker", "ps", "-q", "--no-trunc", "--filter", OURS, *([] if running else ["-a"])]
    found = subprocess.check_output(words, text=True).split()
    # No check=True: `docker inspect` fails if a container is gone, but prints the others.
    told = subprocess.run(["docker", "inspect", *found], capture_output=True)
    return json.loads(told.stdout) if found else []


def trainers() -> list[dict]:
    return [each for each in containers() if each["Config"]["Labels"]["music-genre.task"] == TRAIN]


def output_of(name: str) -> str:
    ended = subprocess.run(["docker", "logs", name], capture_output=True, text=True)
    return ended.stdout + ended.stderr


def wait_for_training(run: Run) -> dict:
    """Wait until a container of the run trains and has written a checkpoint."""

    def trains() -> bool:
        assert run.state() in ("queued", "running"), run.rows()
        found = trainers()
        return bool(found) and "epoch=1 " in output_of(found[0]["Name"].lstrip("/"))

    wait_until(trains, 240)
    (found,) = trainers()
    return found


def assert_done(run: Run, seconds: float = 420.0) -> None:
    assert finish(run, seconds) == "success", run.rows()
    assert trainers() == []


@pytest.fixture(scope="module")
def leftover() -> Iterator[str]:
    """A container of a deleted run: nobody waits for the container to end."""
    labels = {"stack": NAME, "dag": DAG, "run": "a run that was deleted", "task": TRAIN}
    labels |= {"map-index": "-1", "try": "1", "command": "x"}
    given = [f"--label=music-genre.{name}={value}" for name, value in labels.items()]
    words = ["docker", "run", "-d", *given, "music-genre-classif:test", "sleep", "600"]
    left = subprocess.check_output(words, text=True).strip()
    yield left
    subprocess.run(["docker", "rm", "-f", left], capture_output=True)


@pytest.fixture(scope="module")
def published(with_docker, leftover) -> Run:
    run = start(with_docker, epochs=1)
    assert_done(run)
    return run


def test_the_first_programs_command_lines_end_with_a_published_model(published):
    assert {row.name: row.queue for row in published.rows()} == {
        "check": "cpu",
        "create-image-features-from-audio": "gpu",
        TRAIN: "gpu",
        "publish": "cpu",
    }
    assert published.result("create-image-features-from-audio")["n_tracks"] == 203
    trained, model = published.result(TRAIN), published.result("publish")
    assert trained["accuracy"] == model["accuracy"]
    assert model["remote"] == "s3://music-genre/dvc"
    words = ("git", "-C", "/versions/music-genre.git", "show", f"{model['tag']}:{model['path']}")
    assert ".dvc" in inside("cpu-worker", *words).stdout


def test_no_secret_is_in_fields_labels_or_logs(with_docker, published, project):
    values = environment.read(project.env_file)
    secrets = {values[name] for name in environment.SECRETS}
    address = path("dags", DAG, "dagRuns", published.run_id, "taskInstances")
    shown = json.dumps(with_docker.api.get(address))
    assert "rendered_fields" in shown
    shown += "".join(log_of(with_docker, published, row.name) for row in published.rows())
    run = start(with_docker, epochs=500, seed=1)
    found = wait_for_training(run)
    shown += json.dumps(found["Config"]) + output_of(found["Name"].lstrip("/"))
    history = ["docker", "history", "--no-trunc", "music-genre-classif:test"]
    shown += subprocess.check_output(history, text=True)
    assert {secret for secret in secrets if secret in shown} == set()
    assert {each["Destination"] for each in found["Mounts"]} == {
        *("/artifacts", "/var/tmp/music-genre-gpus")
    }
    host = found["HostConfig"]
    assert (host["CapDrop"], host["NetworkMode"], host["ReadonlyRootfs"]) == (["ALL"], "none", True)
    assert host["Memory"] == inspect("gpu-worker")["HostConfig"]["Memory"]
    mark_failed_and_see_it_gone(with_docker, run, found)


def mark_failed_and_see_it_gone(stack: ComposeStack, run: Run, found: dict) -> None:
    name = found["Name"].lstrip("/")
    following = subprocess.Popen(
        ["docker", "logs", "-f", "--tail", "5", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    began = time.monotonic()
    address = path("dags", DAG, "dagRuns", run.run_id, "taskInstances", TRAIN)
    stack.api.patch(address, {"new_state": "failed"})
    wait_until(lambda: not trainers(), GONE_SECONDS)
    print(f"mark failed: gone after {time.monotonic() - began:.1f} s")
    last, _ = following.communicate(timeout=20)
    assert "stopped by SIGTERM" in last, last


@pytest.mark.soak
@pytest.mark.parametrize("victim", ["worker", "supervisor"])
def test_after_kill_9_the_next_try_follows_the_one_container(with_docker, victim, figures):
    for kill in range(TENS):
        run = start(with_docker, epochs=3, seed=100 * (1 + (victim == "worker")) + kill)
        found = wait_for_training(run)
        name = found["Name"].lstrip("/")
        signal_trainer(name, "STOP")  # it must not end before the kill is noticed
        kill_9(victim)
        following = f"following container {name}"
        wait_until(lambda: following in log_of(with_docker, run, TRAIN, 2), 240)  # noqa: B023
        signal_trainer(name, "CONT")
        give_up_at = time.monotonic() + 420
        while run.state() in ("queued", "running"):
            assert time.monotonic() < give_up_at, run.rows()
            assert {each["Id"] for each in trainers()} <= {found["Id"]}
            time.sleep(0.5)
        assert_done(run)
    figures[f"a {victim} killed, its container followed to the end"] = f"{TENS} times"


def signal_trainer(name: str, signal: str) -> None:
    """Signal a container's processes from the host: its first process ignores STOP from inside."""
    pids = subprocess.check_output(["docker", "top", name, "-eo", "pid"], text=True).split()[1:]
    subprocess.run(["kill", f"-{signal}", *pids], check=True)


def kill_9(victim: str) -> None:
    """From the host, kill the gpu worker or the supervisor of its task."""
    top = ["docker", "top", container("gpu-worker"), "-eo", "pid,args"]
    lines = subprocess.check_output(top, text=True).splitlines()[1:]
    title = ":MainProcess]" if victim == "worker" else "airflow supervisor"
    (pid,) = [line.split()[0] for line in lines if title in line]
    os.kill(int(pid), 9)


REACH = """
import socket, sys
for address in sys.argv[1:]:
    try:
        socket.create_connection((address, 2375), 3)
    except OSError as error:
        print(address, error)
    else:
        sys.exit(f"{address} was reached")
"""


OTHERS = ["webserver", "scheduler", "dag-processor", "triggerer", "cpu-worker", "flower"]


@pytest.mark.parametrize("service", OTHERS)
def test_nobody_but_the_gpu_worker_reaches_the_engine(with_docker, service):
    networks = inspect("socket-proxy")["NetworkSettings"]["Networks"]
    assert list(networks) == [f"{NAME}_docker"]
    addresses = ["socket-proxy", *(each["IPAddress"] for each in networks.values())]
    assert inside("gpu-worker", "python", "-c", REACH, *addresses).returncode == 1
    ended = inside(service, "python", "-c", REACH, *addresses)
    assert ended.returncode == 0, ended.stderr
    for each in (service, "gpu-worker"):
        assert inside(each, "test", "-e", "/var/run/docker.sock").returncode != 0


def test_a_leftover_that_nobody_waits_for_is_removed_by_the_next_task(
    with_docker, leftover, published
):
    assert leftover not in {each["Id"] for each in containers()}
    log = log_of(with_docker, published, "create-image-features-from-audio")
    assert re.search("removing container .*no longer needs", log)
