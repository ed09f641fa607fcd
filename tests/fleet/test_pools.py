import pytest

from fleet import pools
from fleet.contract import queues
from fleet.pools import describe

GPU = [queues()["gpu"]]


def worker(slots: int, *gpus: str) -> dict:
    return {"slots": slots, "gpus": list(gpus)}


def test_a_pool_has_the_slots_of_its_live_workers_alone():
    live = {"gpu@a": worker(2, "GPU-1", "GPU-2"), "gpu@b": worker(1, "GPU-5"), "cpu@c": worker(16)}
    assert describe(GPU, live) == (3, "3 slots of gpu@a, gpu@b")


def test_slots_that_are_no_gpus_are_said_to_be_none():
    found = describe(GPU, {"gpu@a": worker(1), "gpu@b": worker(2, "GPU-1", "GPU-2")})
    assert found == (3, "3 slots of gpu@a, gpu@b; on the CPU: gpu@a")


def test_a_gpu_that_two_workers_were_given_is_one_slot():
    found = describe(GPU, {"gpu@a": worker(2, "GPU-1", "GPU-2"), "gpu@b": worker(1, "GPU-2")})
    assert found == (2, "2 slots of gpu@a, gpu@b; GPUs given to more than one worker: GPU-2")


def test_a_pool_whose_workers_are_silent_stays_as_it_is(monkeypatch):
    made = []
    monkeypatch.setattr(pools, "_ask_workers", lambda: {"cpu@a": worker(4)})
    monkeypatch.setattr(pools.Pool, "create_or_update_pool", lambda *words, **_: made.append(words))
    with pytest.raises(SystemExit, match=r"no worker of pool gpu has answered .* is unchanged"):
        pools.sync_pools()
    assert made == []
