"""One task a GPU: on the real stack, with a driver that names two GPUs which are not there.

`KILLS=10` kills each kind of process ten times instead of once.
"""

import time

import psutil
import pytest
from conftest import N_GPUS, wait_until
from test_training import finish

from deploy.supervisor import supervisord_process
from tests.gpu_trainings import (
    ROUNDS,
    assert_all_resumed,
    assert_one_a_gpu,
    kill_each_once,
    sweep,
    train_instances,
    trainings,
)

pytestmark = pytest.mark.timeout(1800)
TAKEN_SECONDS = 3.0
"""From a task's being queued until its worker holds the message."""


def is_gpu_worker(process: psutil.Process) -> bool:
    """Whether it is the gpu queue's worker itself, no process of its pool."""
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return title.startswith("[celeryd: gpu@") and ":MainProcess]" in title


def test_the_pool_has_a_slot_for_each_gpu(stack):
    pool = stack.api.get("pools/gpu")
    assert pool["slots"] == N_GPUS
    assert "gpu@" in pool["description"]
    assert "CPU" not in pool["description"]


def test_side_by_side_each_training_has_a_gpu_of_its_own_and_a_third_waits_in_the_pool(stack):
    seeds = range(20, 23)
    run = sweep(stack, seeds, epochs=8)
    wait_until(lambda: len(trainings(seeds)) == N_GPUS)
    assert sorted(each.gpu for each in trainings(seeds)) == ["GPU-1", "GPU-2"]
    assert stack.api.get("pools/gpu")["scheduled_slots"] == 1
    assert stack.api.get("pools/gpu")["queued_slots"] == 0

    def has_ended() -> bool:
        assert_one_a_gpu(trainings(seeds))
        return run.state() in ("success", "failed")

    wait_until(has_ended, seconds=300)
    assert finish(run) == "success", run.rows()
    names = sorted(each["rendered_map_index"] for each in train_instances(stack, run))
    assert names == [f"shufflenet_v2_x0_5, seed {seed}" for seed in seeds]


@pytest.mark.parametrize("kinds", ROUNDS, ids=lambda kinds: "-".join(dict.fromkeys(kinds)))
def test_after_kill_9_the_gpu_is_free_at_once_and_the_training_goes_on(stack, kinds):
    first = 20_000 + 100 * ROUNDS.index(kinds)
    seeds = range(first, first + len(kinds))
    run = sweep(stack, seeds, epochs=14)
    done = kill_each_once(run, seeds, kinds)
    assert_all_resumed(stack, run, done, seeds)


def test_a_training_whose_worker_died_before_starting_it_is_started_by_the_next(stack):
    """As when a machine is lost in the second between the two."""
    own = supervisord_process(stack.state).children(recursive=True)
    (worker,) = [each for each in own if is_gpu_worker(each)]
    slots = worker.children()
    for slot in slots:
        slot.suspend()
    try:
        run = sweep(stack, range(30_000, 30_001), epochs=2)
        wait_until(lambda: stack.api.get("pools/gpu")["queued_slots"] == 1)
        time.sleep(TAKEN_SECONDS)
    finally:
        for process in (worker, *slots):
            process.kill()
    wait_until(lambda: run.state() == "success", seconds=240)
    (training,) = train_instances(stack, run)
    assert training["try_number"] == 1
