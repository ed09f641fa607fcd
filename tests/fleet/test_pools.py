from fleet.contract import queues
from fleet.pools import describe

GPU = [queues()["gpu"]]


def workers(**slots: int) -> dict:
    return {name.replace("_", "@"): {"max-concurrency": n} for name, n in slots.items()}


def test_a_pool_has_the_slots_of_its_live_workers_alone():
    live = workers(gpu_a=4, gpu_b=2, cpu_c=16)
    gpus = {"gpu@a": ["GPU-1"] * 4, "gpu@b": ["GPU-5", "GPU-6"], "cpu@c": []}
    assert describe(GPU, live, gpus) == (6, "6 slots of gpu@a, gpu@b")


def test_slots_that_are_no_gpus_are_said_to_be_none():
    found = describe(GPU, workers(gpu_a=1, gpu_b=2), {"gpu@a": [], "gpu@b": ["GPU-1", "GPU-2"]})
    assert found == (3, "3 slots of gpu@a, gpu@b; on the CPU: gpu@a")


def test_a_pool_without_a_worker_has_no_slot():
    assert describe(GPU, workers(cpu_a=4), {}) == (0, "0 slots of no worker")
