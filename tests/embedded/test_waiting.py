"""Nothing fails by waiting, and the line is first come, first served; slow tests."""

import socket
import time
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from conftest import SETTINGS, down_local, up_local, wait_until

from deploy.demo import Run, trigger
from deploy.embedded.stack import LocalStack
from deploy.embedded.state import State
from deploy.places import TRAINING_DAG
from tests.gpu_trainings import standing_still, sweep, trainings

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
QUEUED_SECONDS = 45
HASTY = f"""\
AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT={QUEUED_SECONDS}
AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL=10
"""
DAGS = """\
import time
from airflow.sdk import DAG, task

with DAG("many", schedule=None, is_paused_upon_creation=False, max_active_tasks=300):

    @task(queue="cpu", retries=0)
    def work(number):
        time.sleep(1)

    work.expand(number=list(range(200)))

with DAG("few", schedule=None, is_paused_upon_creation=False):

    @task(queue="cpu", retries=0)
    def alone(number):
        return number

    alone.expand(number=list(range(5)))
"""
WORKERLESS_SECONDS = 600


@pytest.fixture(scope="module")
def hasty(tmp_path_factory, fake_driver):
    """A stack in which a queued task is sent again after 45 s; by default after 180 s."""
    folder, dags = tmp_path_factory.mktemp("hasty") / "state", tmp_path_factory.mktemp("dags")
    folder.mkdir()
    (dags / "waiting.py").write_text(DAGS)
    (folder / "airflow.env").write_text(f"{SETTINGS}{HASTY}DAGS_DIR={dags}\n")
    try:
        up_local(folder, fake_driver)
        stack = LocalStack(State(folder))
        wait_until(lambda: stack.api.exists("dags/few"))
        yield stack
    finally:
        down_local(folder)


def tries(stack: LocalStack, run: Run) -> list[int]:
    listed = stack.api.get(f"{run._address}/taskInstances?limit=300")["task_instances"]
    return [each["try_number"] for each in listed]


def workers(stack: LocalStack) -> list[psutil.Process]:
    """The workers' main processes."""
    names = {"cpu-worker", "gpu-worker"}
    pids = [each.pid for each in stack.supervisor.processes() if each.name in names]
    return [psutil.Process(pid) for pid in pids]


def redis(stack: LocalStack, *commands: str) -> list[str]:
    """Send commands to Redis as a worker; returns the first line of each answer."""
    login = f"AUTH worker {stack.state.secrets().redis_worker_password}"
    with socket.create_connection(("127.0.0.1", stack.state.launch().redis), 5) as connection:
        with connection.makefile("rw", newline="\r\n") as stream:
            answers = []
            for line in (login, *commands):
                stream.write(f"{line}\n")
                stream.flush()
                answers.append(stream.readline().strip())
    return answers[1:]


def with_messages_in_redis(stack: LocalStack) -> tuple[list[psutil.Process], Run]:
    """Suspend the workers and start a run; returns both when messages of its tasks are in Redis."""
    held = workers(stack)
    for each in held:
        each.suspend()
    run = trigger(stack, {}, "few")
    wait_until(lambda: redis(stack, "LLEN cpu") not in ([":0"], [":1"]))
    return held, run


def test_200_tasks_behind_two_slots_wait_and_none_fails(hasty, figures):
    began = time.monotonic()
    run = trigger(hasty, {}, "many")
    wait_until(lambda: run.state() != "queued" and run.state() != "running", seconds=1200)
    assert run.state() == "success", run.rows()
    assert tries(hasty, run) == [1] * 200
    figures["200 tasks, 2 slots"] = f"all at their first try, in {time.monotonic() - began:.0f} s"


def test_a_message_that_is_lost_is_sent_again(hasty, figures):
    held, run = with_messages_in_redis(hasty)
    lost = redis(hasty, "LLEN cpu", "DEL cpu")[0]
    began = time.monotonic()
    for each in held:
        each.resume()
    wait_until(lambda: run.state() == "success", seconds=300)
    assert tries(hasty, run) == [1] * 5
    figures["lost messages"] = f"{lost[1:]}, run after {time.monotonic() - began:.0f} s"


def test_while_no_worker_runs_tasks_wait_and_none_fails(hasty, figures):
    held, run = with_messages_in_redis(hasty)
    hasty.supervisor._call("stopProcessGroup", "workers", False)
    for each in held:
        each.kill()
    wait_until(lambda: hasty.api.get("pools/cpu")["slots"] == 0, seconds=60)
    time.sleep(WORKERLESS_SECONDS)
    assert {row.state for row in run.rows()} <= {"queued", "scheduled", "waiting"}
    began = time.monotonic()
    hasty.supervisor.start_all()
    wait_until(lambda: hasty.api.get("pools/cpu")["slots"] > 0, seconds=90)
    figures["pool"] = f"right {time.monotonic() - began:.0f} s after the workers' start"
    wait_until(lambda: run.state() == "success", seconds=300)
    assert tries(hasty, run) == [1] * 5
    figures["no worker"] = f"for {WORKERLESS_SECONDS / 60:.0f} min: all at their first try"


def test_trainings_start_in_the_order_in_which_their_runs_came(stack, few, figures):
    """A sweep, a single training, a second sweep, and a run with a date long past."""
    first, later = range(40_000, 40_006), range(40_010, 40_013)
    runs = {"sweep": sweep(stack, first, epochs=1, audio=few)}
    wait_until(lambda: len(trainings(first)) == 2)
    small = {"model": "shufflenet_v2_x0_5", "epochs": 1, "audio": few}
    with standing_still(trainings(first)):
        runs["single"] = trigger(stack, {**small, "seed": 40_020})
        time.sleep(5)
        runs["second sweep"] = sweep(stack, later, epochs=1, audio=few)
        time.sleep(5)
        past = (datetime.now(UTC) - timedelta(days=300)).isoformat()
        body = {"conf": {**small, "seed": 40_030}, "logical_date": past}
        made = stack.api.post(f"dags/{TRAINING_DAG}/dagRuns", body)
        runs["past"] = Run(stack, TRAINING_DAG, made["dag_run_id"])
        wait_until(lambda: stack.api.get("pools/gpu")["scheduled_slots"] == 4 + 1 + 3 + 1, 300)
    for run in runs.values():
        wait_until(lambda: run.state() not in ("queued", "running"), seconds=900)  # noqa: B023
        assert run.state() == "success", run.rows()
    starts = []
    for name, run in runs.items():
        listed = stack.api.get(f"{run._address}/taskInstances?limit=100")["task_instances"]
        starts += [(each["start_date"], name) for each in listed if each["task_id"] == "train"]
    order = [name for _, name in sorted(starts)]
    figures["order of starts"] = ", ".join(order)
    assert order == ["sweep"] * 6 + ["single"] + ["second sweep"] * 3 + ["past"]


def test_the_pool_follows_the_workers(hasty, figures):
    """The gpu worker leaves, as if its machine were lost, and comes back."""
    seconds = []
    for verb, slots in (("stopProcess", 0), ("startProcess", 2)):
        hasty.supervisor._call(verb, "workers:gpu-worker")
        began = time.monotonic()
        wait_until(lambda: hasty.api.get("pools/gpu")["slots"] == slots, seconds=90)  # noqa: B023
        seconds.append(time.monotonic() - began)
    figures["gpu pool"] = f"0 slots after {seconds[0]:.0f} s, 2 again after {seconds[1]:.0f} s"
    assert max(seconds) <= 45


MODEL = {
    "model": "",
    "accuracy": 0.5,
    "accuracy_interval": [0.4, 0.6],
    "n_tracks": 40,
    "tag": "t",
    "repository": "r",
    "path": "p",
}


def test_models_that_are_published_while_no_scheduler_runs_are_all_named(hasty, figures):
    """Of several waiting events Airflow 3.3.2 gives the run only the first."""
    address = "dags/music_genre_new_model/dagRuns"
    (asset,) = hasty.api.get("assets?name_pattern=music_genre_model")["assets"]

    def publish(*names: str) -> None:
        for name in names:
            extra = {**MODEL, "model": name}
            hasty.api.post("assets/events", {"asset_id": asset["id"], "extra": extra})

    def named() -> list[str]:
        listed = hasty.api.get(f"{address}?state=success&order_by=id")["dag_runs"]
        runs = [Run(hasty, "music_genre_new_model", each["dag_run_id"]) for each in listed]
        return [name for run in runs for name in run.xcom("tell")]

    hasty.supervisor._call("stopProcess", "control:scheduler")
    publish("first", "second", "third")
    hasty.supervisor._call("startProcess", "control:scheduler")
    wait_until(lambda: named() == ["first", "second", "third"], seconds=180)
    publish("fourth")
    wait_until(lambda: named() == ["first", "second", "third", "fourth"], seconds=180)
    figures["models published without a scheduler"] = "3, all named in one run"
