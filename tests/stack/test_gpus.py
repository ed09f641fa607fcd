"""One task a GPU, and waiting in the pool, with GPUs that are not there.

`KILLS=10` kills each kind of process ten times instead of once.
"""

import itertools
import statistics
import subprocess
import time
from datetime import UTC, datetime

import pytest
from conftest import NAME, REPOSITORY, container, finish, inside, wait_until

from deploy.compose import ComposeStack, Project
from deploy.demo import trigger
from deploy.stack import ask
from tests.gpu_trainings import (
    ROUNDS,
    assert_all_resumed,
    assert_one_a_gpu,
    kill_each_once,
    log_of,
    sweep,
    train_instances,
    trainings,
)

pytestmark = pytest.mark.timeout(1800)
LEASE_AND_RENEWAL_SECONDS = 40  # fleet.messages: 30 and 5, and some
FOUR = "GPU-1,GPU-2,GPU-3,GPU-4"


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("driver")
    source = REPOSITORY / "tests" / "fakes" / "nvml.c"
    words = ["gcc", "-shared", "-fPIC", "-DN_GPUS=4", "-o", f"{folder}/libnvidia-ml.so.1"]
    subprocess.run([*words, str(source)], check=True)
    for opened in (folder, *folder.parents[:2]):
        opened.chmod(0o755)
    return str(folder)


@pytest.fixture(scope="module")
def with_gpus(stack, project, driver, tmp_path_factory):
    """The shared stack with `gpus.yml`; afterwards as it was."""
    env_file = tmp_path_factory.mktemp("gpus") / ".env"
    files = "COMPOSE_FILE=docker-compose.yml:tests/stack/gpus.yml"
    lines = [project.env_file.read_text(), files, f"FAKE_DRIVER={driver}", "FIRST_GPUS=GPU-1,GPU-2"]
    env_file.write_text("\n".join(lines) + "\n")
    changed = Project(NAME, env_file)
    try:
        start(changed, 2)
        yield ComposeStack(changed)
    finally:
        project.compose("up", "-d", "--no-build", "--wait", "--remove-orphans")
    wait_until(lambda: ask(stack.is_healthy) and len(stack.online_workers()) == 2)
    project.compose("exec", "-T", "scheduler", "python", "-m", "fleet", "sync-pools")


def start(project: Project, n_workers: int) -> None:
    """Start one worker of four GPUs, or two of two each."""
    text = project.env_file.read_text().rpartition("FIRST_GPUS=")[0]
    project.env_file.write_text(text + f"FIRST_GPUS={FOUR if n_workers == 1 else 'GPU-1,GPU-2'}\n")
    scale = ("--scale", f"gpu-worker-2={n_workers - 1}")
    project.compose("up", "-d", "--no-build", "--wait", *scale)
    stack = ComposeStack(project)
    wait_until(lambda: ask(stack.is_healthy) and len(stack.online_workers()) == 1 + n_workers)
    project.compose("exec", "-T", "scheduler", "python", "-m", "fleet", "sync-pools")


def test_a_misspelt_queue_is_an_import_error_and_other_files_dags_run(with_gpus, page):
    def errors() -> list[dict]:
        return with_gpus.api.get("importErrors")["import_errors"]

    wait_until(lambda: ask(lambda: bool(errors())), seconds=60)
    (error,) = errors()
    assert error["filename"].endswith("misspelt.py")
    assert (
        "task train names queue 'trianing', which no worker serves; write one of cpu, gpu"
        in error["stack_trace"]
    )
    assert not with_gpus.api.exists("dags/misspelt")
    assert finish(trigger(with_gpus, {}, "fleet_check")) == "success"
    page.goto(f"{with_gpus.web_address}/")
    page.get_by_text("Import Error").first.click()
    page.get_by_text("misspelt.py").first.click()
    page.get_by_text("names queue 'trianing', which no worker serves").first.wait_for()


@pytest.mark.parametrize("n_workers", [1, 2])
def test_twelve_trainings_share_four_gpus_and_the_urgent_goes_first(with_gpus, n_workers):
    start(with_gpus.project, n_workers)
    assert with_gpus.api.get("pools/gpu")["slots"] == 4
    seeds = range(1000 * n_workers, 1000 * n_workers + 12)
    run = sweep(with_gpus, seeds, epochs=6)
    wait_until(lambda: len(trainings(seeds)) == 4, seconds=180)
    urgent = trigger(with_gpus, {}, "fleet_check")
    while run.state() not in ("success", "failed"):
        assert_one_a_gpu(trainings(seeds))
        time.sleep(0.2)
    instances = train_instances(with_gpus, run)
    assert run.state() == urgent.state() == "success", run.rows()
    assert {each["try_number"] for each in instances} == {1}
    starts = sorted(datetime.fromisoformat(each["start_date"]) for each in instances)
    ends = sorted(datetime.fromisoformat(each["end_date"]) for each in instances)
    assert statistics.median(each["duration"] for each in instances) > 20  # task_queued_timeout
    check = next(row for row in urgent.rows() if row.name == "device-gpu")
    rows = with_gpus.api.get(f"{urgent._address}/taskInstances")["task_instances"]
    began = datetime.fromisoformat(
        next(each["start_date"] for each in rows if each["task_id"] == check.name)
    )
    assert began < starts[5], "it waited behind trainings of lower priority"
    gaps = gaps_of(with_gpus, run, instances)
    print(f"{n_workers} workers: {(ends[-1] - starts[0]).total_seconds():.0f} s, gaps {gaps}")
    assert statistics.median(gaps) <= 3


def gaps_of(stack, run, instances) -> list[float]:
    """Seconds that each GPU was idle between two trainings, but for what `fleet_check` took."""
    by_gpu: dict[str, list[tuple[datetime, datetime]]] = {}
    for each in instances:
        log = log_of(stack, run, each["map_index"], 1)
        (gpu,) = {word for word in FOUR.split(",") if f"{word} is given" in log}
        span = (each["start_date"], each["end_date"])
        by_gpu.setdefault(gpu, []).append(tuple(map(datetime.fromisoformat, span)))
    assert sorted(by_gpu) == FOUR.split(",")
    gaps = []
    for spans in map(sorted, by_gpu.values()):
        for (_, ended), (began, _) in itertools.pairwise(spans):
            assert began >= ended, "two trainings on one GPU"
            gaps.append(round((began - ended).total_seconds(), 1))
    return gaps


@pytest.mark.parametrize("kinds", ROUNDS, ids=lambda kinds: "-".join(dict.fromkeys(kinds)))
def test_after_kill_9_the_gpu_is_free_at_once_and_the_training_goes_on(with_gpus, kinds):
    start(with_gpus.project, 2)
    first = 10_000 + 100 * ROUNDS.index(kinds)
    seeds = range(first, first + len(kinds))
    run = sweep(with_gpus, seeds, epochs=14)
    done = kill_each_once(run, seeds, kinds)
    assert_all_resumed(with_gpus, run, done, seeds)


# Only the run's own: a worker that was killed leaves messages too, with tokens that ran out.
AGAIN = """
import base64, json, os, sys
from kombu import Connection
channel = Connection(os.environ["AIRFLOW__CELERY__BROKER_URL"]).channel()
for tag, text in channel.client.hgetall("unacked").items():
    if sys.argv[1].encode() in base64.b64decode(json.loads(text)[0]["body"]):
        channel.qos.restore_by_tag(tag)
"""


@pytest.mark.parametrize("after_token", [False, True], ids=["token valid", "token expired"])
def test_a_message_that_comes_again_does_not_harm_the_task_that_runs(with_gpus, after_token):
    """As workers do after `visibility_timeout`; a token lives for `task_queued_timeout`."""
    seeds = range(30_000 + after_token, 30_001 + after_token)
    run = sweep(with_gpus, seeds, epochs=70 if after_token else 40)
    wait_until(lambda: any(training.is_computing() for training in trainings(seeds)), 180)
    (began,) = [each["start_date"] for each in train_instances(with_gpus, run)]
    since = datetime.fromisoformat(began)
    if after_token:
        wait_until(lambda: (datetime.now(UTC) - since).total_seconds() > LEASE_AND_RENEWAL_SECONDS)
        assert n_received(run) == 1, "its worker did not renew the lease"
    ended = inside("gpu-worker", "python", "-c", AGAIN, run.run_id)
    assert ended.returncode == 0, ended.stderr
    wait_until(lambda: n_received(run) == 2, 60)
    assert trainings(seeds), "the training ended too soon to tell"
    while run.state() not in ("success", "failed"):
        assert_one_a_gpu(trainings(seeds))
        time.sleep(0.5)
    assert run.state() == "success", run.rows()
    assert [each["try_number"] for each in train_instances(with_gpus, run)] == [1]
    seen = ("already running elsewhere", "came again: its token has run out")
    assert [text in worker_logs().partition(run.run_id)[2] for text in seen] == [
        *(not after_token, after_token)
    ]


def worker_logs() -> str:
    logs = ""
    for service in ("gpu-worker", "gpu-worker-2"):
        words = ["docker", "logs", "--timestamps", container(service)]
        ended = subprocess.run(words, capture_output=True, text=True)
        logs += ended.stdout + ended.stderr
    return "\n".join(sorted(logs.splitlines()))


def n_received(run) -> int:
    """How often a gpu worker was given the run's training."""
    return sum(
        "Executing workload in Celery" in line and run.run_id in line and "task_id='train'" in line
        for line in worker_logs().splitlines()
    )
