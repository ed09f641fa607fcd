"""Runs last: starts the project as a new user does, without the tests' files and profiles.

These tests also show that data outlive the containers: every container is replaced.
"""

import json
import re
import subprocess
from typing import NamedTuple

import pytest
from conftest import FAST, NAME, container, deploy, finish, inside, inspect, log_of, wait_until
from test_privileges import LASTING, TABLE, secrets_in

from deploy.airflow_api import path
from deploy.containers import rollout
from deploy.containers.stack import ComposeStack
from deploy.demo import Run, trigger
from deploy.places import TRAINING_DAG
from deploy.running import ask
from tests.gpu_trainings import trainings

pytestmark = pytest.mark.timeout(900)
SEED = 9
"""Seed of the training that continues while a DAG is edited and the stack is replaced."""


@pytest.fixture(scope="module")
def left(run: Run) -> tuple[str, str]:
    """Address and text of the training's result file, read before the containers are removed."""
    address = f"{run.result('train')['run']}/training.json"
    return address, inside("gpu-worker", "cat", address).stdout


class Going(NamedTuple):
    """A training and a run of twenty short tasks. Both must survive the change of containers."""

    training: Run
    short: Run


@pytest.fixture(scope="module")
def training(stack, left, few) -> Run:
    """A training that is in progress."""
    run = trigger(stack, {**FAST, "epochs": 300, "seed": SEED, "audio": few})
    wait_until(lambda: "epoch=1 " in log_of(stack, run, "train"))
    return run


def test_an_edited_dag_is_in_force_within_seconds_and_the_training_goes_on(
    stack, training, own_dags
):
    def process() -> tuple[int, float]:
        (its,) = trainings(range(SEED, SEED + 1))
        return its.process.pid, its.process.create_time()

    def is_in_force(word: str) -> bool:
        return word in str(stack.api.get("dagSources/short"))

    before = process()
    file = own_dags / "short.py"
    file.write_text(file.read_text().replace("Twenty short tasks", "A score of short tasks"))
    wait_until(lambda: is_in_force("A score of"), seconds=60)  # 15 s on an idle machine
    assert process() == before


@pytest.fixture(scope="module")
def rolled_out(stack, training, plain) -> Going:
    """While two runs are in progress, replace the tests' stack with a new user's stack."""
    # Delete the old repository: its remote is on S3, but the new stack publishes to the volume.
    assert inside("cpu-worker", "sh", "-c", "rm -rf /versions/*").returncode == 0
    going = Going(training, trigger(stack, {}, "short"))
    wait_until(lambda: "running" in [row.state for row in going.short.rows()])
    rollout.start(plain)
    new = ComposeStack(plain)  # its address lacks the old stack's /airflow
    return Going(*(Run(new, each.dag_id, each.run_id) for each in going))


def test_a_roll_out_spends_no_try(rolled_out, plain):
    """The new stack lacks the DAG file of the short tasks. The DAG is kept until its run ends."""
    new = ComposeStack(plain)
    training, short = rolled_out
    wait_until(
        lambda: re.search(r"resuming at step [1-9].*epoch=", log_of(new, training, "train"), re.S)
    )
    # The log's earlier lines are on the old stack's S3 service. The plain stack does not use S3.
    assert "epoch=1 " not in log_of(new, training, "train")
    assert finish(short) == "success", short.rows()
    for run in rolled_out:
        listed = new.api.get(f"{run._address}/taskInstances?limit=100")["task_instances"]
        assert {each["try_number"] for each in listed if each["start_date"]} == {1}, run.rows()


@pytest.fixture(scope="module")
def started(rolled_out, plain) -> ComposeStack:
    """The stack after a second `make up`, which changes only the schedule."""
    stack = ComposeStack(plain)
    address = path("dags", TRAINING_DAG, "dagRuns", rolled_out.training.run_id)
    stack.api.patch(address, {"state": "failed"})
    before = processes()
    up = deploy("up", "--project", NAME, "--env-file", str(plain.env_file), "--daily")
    assert up.returncode == 0, up.stdout + up.stderr
    assert re.search(r"music_genre_training runs next at \d{4}-\d\d-\d\dT00:00:00Z", up.stderr)
    assert "gpu: CPU" in up.stdout
    after = processes()
    assert {name for name, its in before.items() if after[name] != its} == {"dag-processor"}
    wait_until(lambda: ask(stack.is_healthy))
    return stack


def processes() -> dict[str, tuple[str, int]]:
    """For each service that keeps running: the container's id, and the pid of its main process."""
    found = {name: inspect(name) for name in LASTING}
    return {name: (its["Id"], its["State"]["Pid"]) for name, its in found.items()}


def test_the_engines_proxy_is_gone_with_its_profile(started):
    names = subprocess.check_output(["docker", "ps", "-a", "--format", "{{.Names}}"], text=True)
    assert container("webserver") in names.split()
    assert not {container("socket-proxy"), container("gpu-worker-2")} & {*names.split()}


def test_artifacts_outlive_every_container(started, left):
    address, text = left
    assert json.loads(text)
    assert inside("gpu-worker", "cat", address).stdout == text


@pytest.mark.parametrize("service", LASTING)
def test_a_container_knows_the_secrets_of_its_row(started, plain, service):
    assert secrets_in(json.dumps(inspect(service)["Config"]), plain) == TABLE[service].secrets


def test_a_training_finds_its_work_done_and_is_published_to_the_volume(started):
    again = trigger(started, FAST)
    assert finish(again) == "success", again.rows()
    assert again.result("train")["reused"] is True
    assert again.result("publish")["remote"] == "/versions/dvc"
    assert "music-genre train" in log_of(started, again, "train")  # the log is in the volume


def test_data_are_deleted_only_when_somebody_says_so(started):
    ended = deploy("down", "--project", NAME, "--volumes")  # nobody can answer
    assert ended.returncode == 1
    assert re.search(rf"^{NAME}_versions +published data and models", ended.stderr, re.M)
    assert "nothing was deleted" in ended.stderr
    assert ask(started.is_healthy)
