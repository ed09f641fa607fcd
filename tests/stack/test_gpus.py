"""One task a GPU, and waiting in the pool, with GPUs that are not there."""

import itertools
import statistics
import subprocess
import time
from datetime import UTC, datetime
from typing import NamedTuple

import pytest
from conftest import GPUS, container, finish, inside, unpacked, wait_until

from deploy.compose import ComposeStack, Project
from deploy.demo import Run, trigger
from deploy.stack import ask
from tests.gpu_trainings import (
    TENS,
    VICTIMS,
    Training,
    assert_all_resumed,
    assert_one_a_gpu,
    kill_each_once,
    log_of,
    standing_still,
    sweep,
    train_instances,
    trainings,
)
from tests.music import write_few_tracks

pytestmark = pytest.mark.timeout(1800)
QUEUED_SECONDS = 30
"""`task_queued_timeout` of stack.yml, and the life of a message's token."""
LEASE_AND_RENEWAL_SECONDS = 40  # fleet.messages: 30 and 5, and some


@pytest.fixture(scope="module")
def with_gpus(stack, project, tmp_path_factory):
    """The shared stack, its gpu workers with GPUs; afterwards as it was."""
    env_file = tmp_path_factory.mktemp("gpus") / ".env"
    env_file.write_text(f"{project.env_file.read_text()}FAKE_LIBRARIES=/fakes\n")
    changed = Project(project.name, env_file)
    try:
        start(changed, 2)
        yield ComposeStack(changed)
    finally:
        up(project, 0)
    wait_until(lambda: ask(stack.is_healthy) and len(stack.online_workers()) == 2)
    sync_pools(project)


@pytest.fixture(scope="module")
def audio(stack, tmp_path_factory) -> str:
    """A few tracks, where all workers see them."""
    return unpacked(write_few_tracks(tmp_path_factory.mktemp("few") / "genres"), "/artifacts/few")


def up(project: Project, n_second: int) -> None:
    services = ("gpu-worker", "gpu-worker-2")
    scale = ("--scale", f"gpu-worker-2={n_second}")
    project.compose("up", "-d", "--no-build", "--no-deps", "--wait", *scale, *services)


def sync_pools(project: Project) -> None:
    project.compose("exec", "-T", "scheduler", "python", "-m", "fleet", "sync-pools")


def start(project: Project, n_workers: int) -> None:
    """Start one worker of four GPUs, or two of two each."""
    text = project.env_file.read_text().partition("FIRST_GPUS=")[0]
    first = GPUS if n_workers == 1 else GPUS[:2]
    given = f"FIRST_GPUS={','.join(first)}\nSECOND_GPUS={','.join(GPUS[2:])}\n"
    project.env_file.write_text(text + given)
    up(project, n_workers - 1)
    stack = ComposeStack(project)
    wait_until(lambda: ask(stack.is_healthy) and len(stack.online_workers()) == 1 + n_workers)
    sync_pools(project)


class Sweep(NamedTuple):
    """Trainings of which some stand still on their GPUs."""

    run: Run
    seeds: range
    held: list[Training]


@pytest.fixture(scope="module")
def alone(with_gpus, audio):
    """One training, which stands still until the others are done."""
    seeds = range(1000, 1001)
    run = sweep(with_gpus, seeds, epochs=1, audio=audio)
    wait_until(lambda: trainings(seeds), 180)
    held = trainings(seeds)
    with standing_still(held):
        yield Sweep(run, seeds, held)


# A message that a worker holds, of the run that is given, is given out again.
AGAIN = """
import base64, json, os, sys
from kombu import Connection
channel = Connection(os.environ["AIRFLOW__CELERY__BROKER_URL"]).channel()
for tag, text in channel.client.hgetall("unacked").items():
    if sys.argv[1].encode() in base64.b64decode(json.loads(text)[0]["body"]):
        channel.qos.restore_by_tag(tag)
"""


def test_a_message_that_comes_again_is_ignored_while_its_task_runs(with_gpus, alone):
    """As workers put messages back after a lease; a token lives for `task_queued_timeout`."""
    send_again(alone.run)
    wait_until(lambda: "already running elsewhere" in since_start(alone.run), 30)
    assert trainings(alone.seeds) == alone.held


def send_again(run) -> None:
    n_before = n_received(run)
    ended = inside("gpu-worker", "python", "-c", AGAIN, run.run_id)
    assert ended.returncode == 0, ended.stderr
    wait_until(lambda: n_received(run) == n_before + 1, 60)


def since_start(run) -> str:
    return worker_logs().partition(run.run_id)[2]


def worker_logs() -> str:
    logs = ""
    for service in ("gpu-worker", "gpu-worker-2"):
        words = ["docker", "logs", "--timestamps", container(service)]
        ended = subprocess.run(words, capture_output=True, text=True)
        logs += ended.stdout + ended.stderr
    return "\n".join(sorted(logs.splitlines()))


def n_received(run) -> int:
    """How often a gpu worker was given the run's training."""
    wanted = ("Executing workload in Celery", run.run_id, "task_id='train'")
    return sum(all(word in line for word in wanted) for line in worker_logs().splitlines())


@pytest.fixture(scope="module")
def others(with_gpus, audio, alone):
    """Four more trainings on the three GPUs left, where three stand still."""
    seeds = range(1001, 1005)
    run = sweep(with_gpus, seeds, epochs=8, audio=audio)
    wait_until(lambda: sum(each.is_computing() for each in trainings(seeds)) == 3, 180)
    held = trainings(seeds)
    with standing_still(held):
        yield Sweep(run, seeds, held)


@pytest.fixture(scope="module")
def urgent(with_gpus, others) -> Run:
    return trigger(with_gpus, {}, "fleet_check")


def test_each_gpu_has_a_training_and_others_wait_in_the_pool(with_gpus, alone, others, urgent):
    assert sorted(each.gpu for each in alone.held + others.held) == list(GPUS)
    wait_until(lambda: with_gpus.api.get("pools/gpu")["scheduled_slots"] == 2, 60)
    pool = with_gpus.api.get("pools/gpu")
    assert (pool["slots"], pool["running_slots"], pool["queued_slots"]) == (4, 4, 0)


def test_after_kill_9_of_a_worker_its_trainings_go_on_and_what_waited_is_unharmed(
    with_gpus, alone, others, urgent
):
    """The fourth has waited in the pool for longer than a queued task may."""
    run, seeds, held = others
    time.sleep(QUEUED_SECONDS + 5)
    victim = next(each.seed for each in held if not same_worker(each, alone.held[0]))
    for each in held:
        each.process.resume()
    done = kill_each_once(run, seeds, {victim: "worker"})
    assert set(done.free_seconds) == {victim}
    assert_all_resumed(with_gpus, run, done, seeds)
    instances = train_instances(with_gpus, run)
    (waited,) = [each["start_date"] for each in instances if each["map_index"] == 3]
    first = min(each["start_date"] for each in instances if each["map_index"] != 3)
    seconds = datetime.fromisoformat(waited) - datetime.fromisoformat(first)
    assert seconds.total_seconds() > QUEUED_SECONDS
    assert finish(urgent) == "success"
    rows = with_gpus.api.get(f"{urgent._address}/taskInstances")["task_instances"]
    (began,) = [each["start_date"] for each in rows if each["task_id"] == "device-gpu"]
    assert began < waited, "it waited behind a training of lower priority"


def same_worker(training: Training, other: Training) -> bool:
    return (training.gpu in GPUS[:2]) == (other.gpu in GPUS[:2])


def test_a_message_whose_token_ran_out_is_ignored_and_its_lease_was_renewed(with_gpus, alone):
    (began,) = [each["start_date"] for each in train_instances(with_gpus, alone.run)]
    since = datetime.fromisoformat(began)
    wait_until(lambda: (datetime.now(UTC) - since).total_seconds() > LEASE_AND_RENEWAL_SECONDS)
    assert n_received(alone.run) == 2, "its worker did not renew the lease"
    send_again(alone.run)
    wait_until(lambda: "came again: its token has run out" in since_start(alone.run), 30)
    assert trainings(alone.seeds) == alone.held
    alone.held[0].process.resume()
    assert finish(alone.run) == "success", alone.run.rows()
    assert [each["try_number"] for each in train_instances(with_gpus, alone.run)] == [1]


@pytest.mark.soak
@pytest.mark.parametrize("n_workers", [1, 2])
def test_twelve_trainings_share_four_gpus(with_gpus, audio, n_workers, figures):
    start(with_gpus.project, n_workers)
    seeds = range(1000 * n_workers + 100, 1000 * n_workers + 112)
    run = sweep(with_gpus, seeds, epochs=10, audio=audio)
    wait_until(lambda: len(trainings(seeds)) == len(GPUS), seconds=180)
    gaps, seconds = share(with_gpus, run, seeds, trigger(with_gpus, {}, "fleet_check"))
    figures["all trainings"] = f"{seconds:.0f} s"
    figures["a GPU idle between two, median"] = f"{statistics.median(gaps)} s"
    assert statistics.median(gaps) <= 3


def share(stack, run, seeds, urgent) -> tuple[list[float], float]:
    """See a sweep to its end; returns the GPUs' idle seconds between trainings, and all seconds."""
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
    """Seconds that each GPU was idle between two trainings, but for what `fleet_check` took."""
    by_gpu: dict[str, list[tuple[datetime, datetime]]] = {}
    for each in instances:
        log = log_of(stack, run, each["map_index"], 1)
        (gpu,) = {name for name in GPUS if f"{name} is given" in log}
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
    with_gpus, audio, kind, figures
):
    start(with_gpus.project, 2)
    first = 10_000 + 100 * VICTIMS.index(kind)
    seeds = range(first, first + TENS)
    kinds = dict.fromkeys(seeds, kind)
    run = sweep(with_gpus, seeds, epochs=8, audio=audio)
    done = kill_each_once(run, seeds, kinds)
    figures.update(done.figures(kinds))
    assert set(done.free_seconds) == set(seeds)
    assert_all_resumed(with_gpus, run, done, seeds)
