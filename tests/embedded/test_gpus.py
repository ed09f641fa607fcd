"""One task per GPU, on the real stack, with a fake driver that reports two GPUs."""

import time

import psutil
import pytest
from conftest import N_GPUS, wait_until

from deploy.airflow_api import path
from deploy.demo import trigger
from deploy.embedded.supervisor import supervisord_process
from tests.gpu_trainings import (
    TENS,
    VICTIMS,
    assert_all_resumed,
    kill_each_once,
    standing_still,
    sweep,
    train_instances,
    trainings,
)

pytestmark = pytest.mark.timeout(1800)
TAKEN_SECONDS = 3.0
"""Enough time for a worker to take the message of a queued task."""


def is_gpu_worker(process: psutil.Process) -> bool:
    """Whether a process is the gpu queue's worker itself, not a process of the worker's pool."""
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return title.startswith("[celeryd: gpu@") and ":MainProcess]" in title


def test_the_pool_has_a_slot_for_each_gpu(stack):
    wait_until(lambda: stack.api.get("pools/gpu")["slots"] == N_GPUS)
    pool = stack.api.get("pools/gpu")
    assert "gpu@" in pool["description"]
    assert "CPU" not in pool["description"]


@pytest.fixture(scope="module")
def five(stack, few):
    """Five trainings, two of which are suspended on the two GPUs."""
    seeds = range(20, 25)
    run = sweep(stack, seeds, epochs=5, audio=few)
    wait_until(lambda: len(trainings(seeds)) == N_GPUS)
    held = trainings(seeds)
    with standing_still(held):
        yield run, seeds, held


def test_side_by_side_each_training_has_a_gpu_of_its_own_and_others_wait_in_the_pool(stack, five):
    run, _, held = five
    assert sorted(each.gpu for each in held) == ["GPU-1", "GPU-2"]
    assert stack.api.get("pools/gpu")["scheduled_slots"] == 3
    assert stack.api.get("pools/gpu")["queued_slots"] == 0
    names = sorted(each["rendered_map_index"] or "" for each in train_instances(stack, run))
    assert names[-N_GPUS:] == [f"shufflenet_v2_x0_5, seed {each.seed}" for each in by_seed(held)]


DUE = """\
from airflow.sdk import DAG, task

with DAG("due", schedule=None, is_paused_upon_creation=False):

    @task(queue="cpu", retries=0)
    def work(number):
        return number

    work.expand(number=list(range(10)))
"""
AWAY_SECONDS = 20


def test_while_redis_is_away_tasks_wait_and_no_process_ends(stack, five, own_dags):
    """A task that cannot be sent failed before; with a task running the scheduler ended."""

    def scheduler() -> int:
        return next(each.pid for each in stack.supervisor.processes() if each.name == "scheduler")

    (own_dags / "due.py").write_text(DUE)
    wait_until(lambda: stack.api.exists("dags/due"))
    _, seeds, held = five
    before = scheduler(), {each.process.pid for each in held}
    stack.supervisor._call("stopProcess", "servers:redis")
    run = trigger(stack, {}, "due")
    time.sleep(AWAY_SECONDS)
    assert {row.state for row in run.rows()} <= {"waiting", "scheduled", "queued"}
    stack.supervisor._call("startProcess", "servers:redis")
    wait_until(lambda: run.state() == "success")
    listed = stack.api.get(f"{run._address}/taskInstances")["task_instances"]
    assert [each["try_number"] for each in listed] == [1] * 10
    assert (scheduler(), {each.process.pid for each in trainings(seeds)}) == before
    log = (stack.state.logs / "scheduler.log").read_text()
    assert "error: Redis, sending tasks: " in log
    assert "Redis, sending tasks: it answers again" in log


def by_seed(found):
    return sorted(found, key=lambda each: each.seed)


def test_kills_of_each_kind_free_the_gpu_at_once_and_one_that_fails_ends_itself_alone(stack, five):
    """One waiting training is marked failed. For each other training one process gets kill -9."""
    run, seeds, held = five
    lost = max({*seeds} - {each.seed for each in held})
    index = seeds.index(lost)
    address = path("dags", run.dag_id, "dagRuns", run.run_id, "taskInstances", "train", index)
    stack.api.patch(address, {"new_state": "failed"})
    for each in held:
        each.process.resume()
    killed = [seed for seed in seeds if seed != lost]
    kinds = dict(zip(killed, VICTIMS, strict=True))
    done = kill_each_once(run, seeds, kinds)
    assert set(done.free_seconds) == set(killed)
    assert_all_resumed(stack, run, done, seeds, lost)
    measured = {row.name: row.state for row in run.rows() if row.name.startswith("evaluate")}
    expected = {f"evaluate {seeds.index(seed) + 1}": "success" for seed in killed}
    assert measured == expected | {f"evaluate {index + 1}": "upstream_failed"}
    table = run.xcom("compare")
    assert [row["seed"] for row in table][-1] == str(lost)
    found = [row["validation_accuracy"] for row in table[:-1]]
    assert found == sorted(found, reverse=True)
    assert all(row["test_accuracy"] is not None for row in table[:-1])


def test_a_sweep_that_is_refused_has_nothing_to_compare(stack):
    run = sweep(stack, range(1), epochs=1, audio="/no/such/folder")
    wait_until(lambda: run.state() == "failed")
    states = {row.name: row.state for row in run.rows()}
    assert (states["check"], states["plan"]) == ("failed", "upstream_failed")
    assert states["compare"] == "skipped"


@pytest.mark.soak
@pytest.mark.parametrize("kind", VICTIMS)
def test_after_kill_9_the_gpu_is_free_at_once_and_the_training_goes_on(stack, few, kind, figures):
    first = 20_000 + 100 * VICTIMS.index(kind)
    seeds = range(first, first + TENS)
    kinds = dict.fromkeys(seeds, kind)
    run = sweep(stack, seeds, epochs=5, audio=few)
    done = kill_each_once(run, seeds, kinds)
    figures.update(done.figures(kinds))
    assert set(done.free_seconds) == set(seeds)
    assert_all_resumed(stack, run, done, seeds)


def test_a_training_whose_worker_died_before_starting_it_is_started_by_the_next(stack, few):
    """This happens if a machine is lost after it took a message and before it started the task."""
    own = supervisord_process(stack.state).children(recursive=True)
    (worker,) = [each for each in own if is_gpu_worker(each)]
    slots = worker.children()
    for slot in slots:
        slot.suspend()
    try:
        run = sweep(stack, range(30_000, 30_001), epochs=1, audio=few)
        wait_until(lambda: stack.api.get("pools/gpu")["queued_slots"] == 1)
        time.sleep(TAKEN_SECONDS)
    finally:
        for process in (worker, *slots):
            process.kill()
    wait_until(lambda: run.state() == "success", seconds=240)
    (training,) = train_instances(stack, run)
    assert training["try_number"] == 1
