"""One task per GPU while others wait in the pool; a fake driver reports the GPUs."""

import itertools
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from conftest import GPUS, containers_of, finish, inside, wait_until

from deploy.containers.stack import ComposeStack, Project
from deploy.demo import Run, trigger
from deploy.running import ask
from tests.gpu_trainings import (
    TENS,
    VICTIMS,
    assert_all_resumed,
    assert_one_a_gpu,
    kill_each_once,
    log_of,
    standing_still,
    sweep,
    train_instances,
    trainings,
)

pytestmark = pytest.mark.timeout(1800)
QUEUED_SECONDS = 30
"""`task_queued_timeout` in stack.yml, which is also the lifetime of a message's token."""
LEASE_AND_RENEWAL_SECONDS = 40  # 30 + 5 in fleet.workers.messages, plus a margin


@pytest.fixture(scope="module")
def with_gpus(stack, project, tmp_path_factory):
    """The shared stack with GPUs for its gpu workers; restored afterwards."""
    env_file = tmp_path_factory.mktemp("gpus") / ".env"
    env_file.write_text(f"{project.env_file.read_text()}FAKE_LIBRARIES=/fakes\n")
    changed = Project(project.name, env_file)
    try:
        start(changed, 2, GPUS[:3])
        yield ComposeStack(changed)
    finally:
        up(project, 0)
    wait_until(lambda: ask(stack.is_healthy) and len(stack.online_workers()) == 2)
    wait_until(lambda: slots(stack) == 1)


def up(project: Project, n_second: int) -> None:
    services = ("gpu-worker", "gpu-worker-2")
    scale = ("--scale", f"gpu-worker-2={n_second}")
    project.compose("up", "-d", "--no-build", "--no-deps", "--wait", *scale, *services)


def slots(stack: ComposeStack) -> int:
    """The slots of the pool gpu; the housekeeper needs up to half a minute to notice a change."""
    return stack.api.get("pools/gpu")["slots"]


def start(project: Project, n_workers: int, gpus: tuple[str, ...] = GPUS) -> None:
    """Start one worker with all GPUs, or two workers: one with two GPUs, one with the rest."""
    text = project.env_file.read_text().partition("FIRST_GPUS=")[0]
    first = gpus if n_workers == 1 else gpus[:2]
    given = f"FIRST_GPUS={','.join(first)}\nSECOND_GPUS={','.join(gpus[2:])}\n"
    project.env_file.write_text(text + given)
    up(project, n_workers - 1)
    stack = ComposeStack(project)
    wait_until(lambda: ask(stack.is_healthy) and len(stack.online_workers()) == 1 + n_workers)
    wait_until(lambda: slots(stack) == len(gpus))


# Redelivers the message that a worker holds for the task with the given run and map index.
AGAIN = """
import base64, json, os, sys
from kombu import Connection
channel = Connection(os.environ["AIRFLOW__CELERY__BROKER_URL"]).channel()
for tag, text in channel.client.hgetall("unacked").items():
    body = json.loads(base64.b64decode(json.loads(text)[0]["body"]))
    task = json.loads(body[0][0])["ti"]
    if [task["run_id"], str(task["map_index"])] == sys.argv[1:]:
        channel.qos.restore_by_tag(tag)
"""


def send_again(run, map_index: int) -> None:
    ended = inside("gpu-worker", "python", "-c", AGAIN, run.run_id, str(map_index))
    assert ended.returncode == 0, ended.stderr
    wait_until(lambda: n_received(run, map_index) == 2, 60)


def since_start(run) -> str:
    return worker_logs().partition(run.run_id)[2]


def worker_logs() -> str:
    logs = ""
    for name in containers_of("gpu-worker") + containers_of("gpu-worker-2"):
        words = ["docker", "logs", "--timestamps", name]
        ended = subprocess.run(words, capture_output=True, text=True)
        logs += ended.stdout + ended.stderr
    return "\n".join(sorted(logs.splitlines()))


def n_received(run, map_index: int) -> int:
    """How often gpu workers received this training of the run."""
    wanted = ("Executing workload in Celery", run.run_id, "task_id='train'")
    wanted += (f"map_index={map_index},",)
    return sum(all(word in line for word in wanted) for line in worker_logs().splitlines())


HELD, LATER = range(1010, 1012), range(1012, 1014)
"""Seeds of two suspended trainings, and of two trainings that are requested later."""


@pytest.fixture(scope="module")
def two(with_gpus, few):
    """Two trainings suspended on two of the three GPUs; a slot is free.

    The first training's message was redelivered as soon as the training ran. The message's token
    was still valid.
    """
    run = sweep(with_gpus, HELD, epochs=4, audio=few)
    wait_until(lambda: (0, "running") in states_of(with_gpus, run), 180)
    send_again(run, 0)
    with held_at(HELD, 2):
        yield run


def states_of(stack: ComposeStack, run: Run) -> list[tuple[int, str]]:
    return [(each["map_index"], each["state"]) for each in train_instances(stack, run)]


@contextmanager
def held_at(seeds: range, number: int) -> Iterator[None]:
    wait_until(lambda: sum(each.is_computing() for each in trainings(seeds)) == number, 180)
    with standing_still(trainings(seeds)):
        yield


def test_a_message_that_comes_again_does_not_harm_the_task_that_runs(with_gpus, two):
    """Workers redeliver a message after its lease. A token lives for `task_queued_timeout`.

    The first training's message is redelivered while its token is valid. The second training's
    message is redelivered after its token has expired.
    """
    held = trainings(HELD)
    wait_until(lambda: "already running elsewhere" in since_start(two))
    began = [each["start_date"] for each in train_instances(with_gpus, two)]
    latest = max(map(datetime.fromisoformat, began))
    wait_until(lambda: (datetime.now(UTC) - latest).total_seconds() > LEASE_AND_RENEWAL_SECONDS)
    assert n_received(two, 1) == 1, "its worker did not renew the lease"
    send_again(two, 1)
    wait_until(lambda: "ignoring a message: its token has expired" in since_start(two))
    assert trainings(HELD) == held
    seen = train_instances(with_gpus, two)
    assert [(each["state"], each["try_number"]) for each in seen] == [("running", 1)] * 2


class Waiting(NamedTuple):
    """Two more trainings: one is suspended on the third GPU, one waits in the pool."""

    run: Run
    urgent: Run
    """A run of fleet_check, started after the trainings."""
    since: datetime


@pytest.fixture(scope="module")
def waiting(with_gpus, two, few):
    run = sweep(with_gpus, LATER, epochs=4, audio=few)
    with held_at(LATER, 1):
        yield Waiting(run, trigger(with_gpus, {}, "fleet_check"), datetime.now(UTC))


def test_each_gpu_has_a_training_and_others_wait_in_the_pool(with_gpus, waiting):
    held = trainings(range(HELD.start, LATER.stop))
    assert sorted(each.gpu for each in held) == list(GPUS[:3])
    wait_until(lambda: with_gpus.api.get("pools/gpu")["scheduled_slots"] == 2, 60)
    pool = with_gpus.api.get("pools/gpu")
    assert (pool["slots"], pool["running_slots"], pool["queued_slots"]) == (3, 3, 0)


def test_after_kill_9_of_a_worker_its_trainings_go_on_and_what_waited_is_unharmed(
    with_gpus, two, waiting
):
    """The last training waits in the pool for longer than a task may be queued."""
    queued = timedelta(seconds=QUEUED_SECONDS + 5)
    wait_until(lambda: datetime.now(UTC) - waiting.since > queued)
    everybody = range(HELD.start, LATER.stop)
    held = trainings(everybody)
    for each in held:
        each.process.resume()
    done = kill_each_once(two, everybody, {HELD.start: "worker"})
    assert list(done.free_seconds) == [HELD.start]
    assert finish(waiting.run) == "success", waiting.run.rows()
    assert_all_resumed(with_gpus, two, done, HELD)
    assert_all_resumed(with_gpus, waiting.run, done, LATER)
    (last,) = {*everybody} - {each.seed for each in held}
    (waited,) = [
        each["start_date"]
        for each in train_instances(with_gpus, waiting.run)
        if LATER[each["map_index"]] == last
    ]
    assert datetime.fromisoformat(waited) - waiting.since > queued
    assert finish(waiting.urgent) == "success"
    rows = with_gpus.api.get(f"{waiting.urgent._address}/taskInstances")["task_instances"]
    (began,) = [each["start_date"] for each in rows if each["task_id"] == "device-gpu"]
    assert began < waited, "it waited behind a training of lower priority"


@pytest.mark.soak
@pytest.mark.parametrize("n_workers", [1, 2])
def test_twelve_trainings_share_four_gpus(with_gpus, few, n_workers, figures):
    start(with_gpus.project, n_workers)
    seeds = range(1000 * n_workers + 100, 1000 * n_workers + 112)
    run = sweep(with_gpus, seeds, epochs=4, audio=few)
    wait_until(lambda: len(trainings(seeds)) == len(GPUS), seconds=180)
    gaps, seconds = share(with_gpus, run, seeds, trigger(with_gpus, {}, "fleet_check"))
    figures["all trainings"] = f"{seconds:.0f} s"
    figures["a GPU idle between two, median"] = f"{statistics.median(gaps)} s"
    n_rounds = len(seeds) / len(GPUS)
    assert statistics.median(gaps) <= 0.1 * seconds / n_rounds, "of the time of a training"


def share(stack, run, seeds, urgent) -> tuple[list[float], float]:
    """Watch a sweep to its end; returns the result of `gaps_of` and the sweep's duration (s)."""
    while run.state() not in ("success", "failed"):
        assert_one_a_gpu(trainings(seeds))
        time.sleep(0.5)
    instances = train_instances(stack, run)
    assert run.state() == urgent.state() == "success", run.rows()
    assert {each["try_number"] for each in instances} == {1}
    starts = sorted(datetime.fromisoformat(each["start_date"]) for each in instances)
    ends = sorted(datetime.fromisoformat(each["end_date"]) for each in instances)
    rows = stack.api.get(f"{urgent._address}/taskInstances")["task_instances"]
    (began,) = [each["start_date"] for each in rows if each["task_id"] == "device-gpu"]
    assert datetime.fromisoformat(began) < starts[5], "it waited behind trainings of lower priority"
    return gaps_of(stack, run, instances), (ends[-1] - starts[0]).total_seconds()


def gaps_of(stack, run, instances) -> list[float]:
    """Seconds between a GPU's successive trainings; meanwhile it was idle or ran `fleet_check`."""
    by_gpu: dict[str, list[tuple[datetime, datetime]]] = {}
    for each in instances:
        log = log_of(stack, run, each["map_index"], 1)
        (gpu,) = {name for name in GPUS if f"{name} is assigned" in log}
        span = (each["start_date"], each["end_date"])
        by_gpu.setdefault(gpu, []).append(tuple(map(datetime.fromisoformat, span)))
    assert sorted(by_gpu) == sorted(GPUS)
    gaps = []
    for spans in map(sorted, by_gpu.values()):
        for (_, ended), (began, _) in itertools.pairwise(spans):
            assert began >= ended, "two trainings on one GPU"
            gaps.append(round((began - ended).total_seconds(), 1))
    return gaps


@pytest.mark.soak
@pytest.mark.parametrize("kind", VICTIMS)
def test_after_kill_9_the_gpu_is_free_at_once_and_the_training_goes_on(
    with_gpus, few, kind, figures
):
    start(with_gpus.project, 2)
    first = 10_000 + 100 * VICTIMS.index(kind)
    seeds = range(first, first + TENS)
    kinds = dict.fromkeys(seeds, kind)
    run = sweep(with_gpus, seeds, epochs=5, audio=few)
    done = kill_each_once(run, seeds, kinds)
    figures.update(done.figures(kinds))
    assert set(done.free_seconds) == set(seeds)
    assert_all_resumed(with_gpus, run, done, seeds)
