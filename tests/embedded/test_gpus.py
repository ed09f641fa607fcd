"""One task a GPU: on the real stack, with a driver that names two GPUs which are not there."""

import psutil
import pytest
from conftest import N_GPUS, processes_of, wait_until
from test_training import FAST, finish

from deploy.demo import trigger

pytestmark = pytest.mark.timeout(900)


def gpus_in_use(stack) -> list[str]:
    """The GPU of each training process."""
    found = []
    for process in processes_of(stack.state.folder):
        try:
            if process.cmdline()[1:3] == [f"{process.cmdline()[1]}", "train"]:
                found.append(process.environ()["CUDA_VISIBLE_DEVICES"])
        except (IndexError, KeyError, psutil.Error):
            continue
    return sorted(found)


def test_the_pool_has_a_slot_for_each_gpu(stack):
    pool = stack.api.get("pools/gpu")
    assert pool["slots"] == N_GPUS
    assert "gpu@" in pool["description"]
    assert "CPU" not in pool["description"]


def test_side_by_side_each_training_has_a_gpu_of_its_own_and_a_third_waits_in_the_pool(stack):
    runs = [trigger(stack, {**FAST, "epochs": 8, "seed": 20 + number}) for number in range(3)]
    wait_until(lambda: len(gpus_in_use(stack)) == N_GPUS)
    assert gpus_in_use(stack) == ["GPU-1", "GPU-2"]
    wait_until(lambda: stack.api.get("pools/gpu")["scheduled_slots"] == 1)
    assert stack.api.get("pools/gpu")["queued_slots"] == 0
    seen = set()

    def have_ended() -> bool:
        in_use = gpus_in_use(stack)
        assert len(set(in_use)) == len(in_use), "two trainings on one GPU"
        seen.update(in_use)
        return all(run.state() in ("success", "failed") for run in runs)

    wait_until(have_ended, seconds=300)
    assert [finish(run) for run in runs] == ["success"] * 3
    assert seen == {"GPU-1", "GPU-2"}
