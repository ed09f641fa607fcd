import pytest

from fleet.contract import queues
from fleet.pools import Workers, describe

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


def test_a_pool_whose_workers_are_all_gone_has_no_slots():
    assert describe(GPU, {"cpu@c": worker(16)}) == (0, "0 slots of no worker")


def test_cores_are_not_said_to_be_no_gpus():
    assert describe([queues()["cpu"]], {"cpu@c": worker(16)}) == (16, "16 slots of cpu@c")


def test_a_worker_counts_until_it_misses_more_than_two_rounds():
    rounds = [{"cpu@a": worker(1), "cpu@b": worker(2)}, *[{"cpu@a": worker(1)}] * 2]
    answers = iter([*rounds, {"cpu@b": worker(3)}, *[{"cpu@a": worker(1)}] * 3])
    workers = Workers(lambda: next(answers))
    seen = [sorted(workers.look()) for _ in range(7)]
    assert seen == [["cpu@a", "cpu@b"]] * 6 + [["cpu@a"]]


def test_a_round_without_redis_changes_nothing():
    def ask():
        raise ConnectionError("Redis is away")

    workers = Workers(lambda: {"cpu@a": worker(1)})
    workers.look()
    workers._ask = ask
    for _ in range(5):
        with pytest.raises(ConnectionError):
            workers.look()
    workers._ask = dict
    assert [*workers.look()] == ["cpu@a"]
