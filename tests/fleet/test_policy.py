"""The cluster policy, tested through Airflow's own parsing of DAG files."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout
from hypothesis import given
from hypothesis import strategies as st

from fleet import policy
from fleet.contract import Queue

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
REPOSITORY = Path(__file__).resolve().parent.parent.parent
FILE = """
from datetime import timedelta
from airflow.sdk import DAG, task
from fleet.operators.command import CommandOperator
def told(context): ...
@task(on_failure_callback=told)
def of_users(x): ...
with DAG("{dag}", schedule=None):
    of_users.expand(x=[1, 2])
    CommandOperator(task_id="plain", command=["true"])
    CommandOperator(task_id="train", command=["true"], {arguments})
    CommandOperator.partial(task_id="mapped", {arguments}).expand(command=[["true"]])
"""
PARSE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
listed = [task for dag in bag.dags.values() for task in dag.tasks]
tasks = {t.task_id: [t.queue, t.pool, str(t.execution_timeout), t.priority_weight] for t in listed}
telling = [t.task_id for t in listed for callbacks in (t.on_failure_callback, t.on_retry_callback)
           if "tell_whose_limit" in [callback.__name__ for callback in callbacks]]
print(json.dumps({"errors": bag.import_errors, "dags": sorted(bag.dags), "tasks": tasks,
                  "telling": telling}))
"""


@pytest.fixture
def parsed(tmp_path):
    def parse(**arguments: str) -> dict:
        for dag, words in arguments.items():
            (tmp_path / f"{dag}.py").write_text(FILE.format(dag=dag, arguments=words))
        path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "fleet" / "config")])
        environment = os.environ | {"PYTHONPATH": path, "AIRFLOW_HOME": str(tmp_path / "home")}
        answer = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PARSE, str(tmp_path)],
            env=environment | {"AIRFLOW__OPERATORS__DEFAULT_QUEUE": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(answer.stdout.splitlines()[-1])

    return parse


def test_an_unknown_queue_is_an_import_error_and_other_files_go_on(parsed, tmp_path):
    found = parsed(wrong='queue="trianing"', right='queue="gpu"')
    assert found["dags"] == ["right"]
    ((path, error),) = found["errors"].items()
    assert path == str(tmp_path / "wrong.py")
    assert f"{path}: task train names queue 'trianing', which no worker serves" in error
    assert "write one of cpu, gpu" in error


def test_what_a_task_lacks_comes_from_its_queue(parsed):
    tasks = parsed(a='queue="gpu"')["tasks"]
    assert tasks["train"] == tasks["mapped"] == ["gpu", "gpu", "1 day, 0:00:00", 1]
    assert tasks["plain"] == ["cpu", "cpu", "2:00:00", 1]


def test_what_a_task_says_itself_stays(parsed):
    said = 'queue="cpu", pool="mine", execution_timeout=timedelta(hours=1), priority_weight=7'
    assert parsed(a=said)["tasks"]["mapped"] == ["cpu", "mine", "1:00:00", 7]


def test_a_task_that_meets_its_queues_limit_says_whose_it_is(parsed, caplog):
    """Without the callback, the log of a sensor that timed out says only `Timeout, PID: 248`."""
    found = parsed(a='queue="gpu", execution_timeout=timedelta(hours=1)')
    # Each task has the callback twice: for a failure and for a retry.
    assert sorted(found["telling"]) == ["of_users", "of_users", "plain", "plain"]
    task = SimpleNamespace(execution_timeout="2:00:00", queue="cpu")
    policy.tell_whose_limit({"task": task, "exception": ValueError()})
    assert caplog.messages == []
    policy.tell_whose_limit({"task": task, "exception": AirflowTaskTimeout("Timeout, PID: 248")})
    (line,) = caplog.messages
    assert line.startswith(
        "error: the task was stopped after 2:00:00, the time limit of queue cpu; raise"
    )


def test_a_pool_in_which_a_task_would_not_wait_for_a_gpu_is_refused(parsed):
    (error,) = parsed(a='queue="gpu", pool="mine"')["errors"].values()
    assert (
        "names pool 'mine', but tasks of queue gpu wait in pool gpu; remove the task's pool"
        in error
    )


def test_a_task_that_may_outlive_its_message_is_refused(parsed):
    found = parsed(a='queue="gpu", execution_timeout=timedelta(days=3)')
    (error,) = found["errors"].values()
    assert "may run for 3 days, 0:00:00, longer than queue gpu allows (1 day, 0:00:00)" in error


def queue(name: str, resource: str, pool: str) -> Queue:
    return Queue(name, "x", resource, 1, 1, 60, pool, 1)


@pytest.mark.parametrize(
    ("own", "conf", "expected"),
    [
        ("gpu", {"gpu_queue": "large"}, ("large", "large")),
        ("gpu", {"gpu_queue": "shared"}, ("shared", "gpu")),
        ("gpu", {"gpu_queue": "unknown"}, ("gpu", "gpu")),
        ("gpu", {"gpu_queue": "cpu"}, ("gpu", "gpu")),
        ("gpu", {"gpu_queue": ["large"]}, ("gpu", "gpu")),
        ("gpu", {}, ("gpu", "gpu")),
        ("gpu", None, ("gpu", "gpu")),
        ("cpu", {"gpu_queue": "large"}, ("cpu", "gpu")),
    ],
)
def test_a_run_sends_its_gpu_tasks_to_the_queue_that_it_names(monkeypatch, own, conf, expected):
    listed = [("cpu", "cpu", "cpu"), ("gpu", "gpu", "gpu"), ("large", "gpu", "large")]
    contract = {name: queue(name, *rest) for name, *rest in [*listed, ("shared", "gpu", "gpu")]}
    monkeypatch.setattr(policy, "queues", lambda: contract)
    instance = SimpleNamespace(queue=own, pool="gpu", priority_weight=1)
    policy.task_instance_mutation_hook(
        instance, SimpleNamespace(conf=conf, state="queued", created_at=NOON)
    )
    assert (instance.queue, instance.pool) == expected


def test_airflow_finds_the_hook_also_for_runs_without_one(monkeypatch):
    instance = SimpleNamespace(queue="gpu", pool="gpu")
    policy.task_instance_mutation_hook(instance)
    assert instance.queue == "gpu"


@given(
    st.integers(-policy.LEVELS, policy.LEVELS),
    st.integers(-policy.LEVELS, policy.LEVELS),
    st.timedeltas(timedelta(seconds=4), timedelta(days=2500)),
)
def test_the_line_is_by_priority_and_then_first_come_first_served(one, other, later):
    weights = policy.in_line(one, NOON), policy.in_line(other, NOON + later)
    assert all(2**26 <= weight < 2**31 for weight in weights), "the column stores 32 bits"
    assert (weights[0] > weights[1]) == (one >= other)
    assert tuple(policy.in_line(weight, NOON + later) for weight in weights) == weights


@pytest.mark.parametrize(
    ("run", "place"),
    [
        ({"created_at": NOON, "queued_at": NOON + timedelta(hours=1)}, NOON),
        ({"created_at": None, "queued_at": NOON}, NOON),
        ({"created_at": NOON, "state": "failed"}, None),
        ({"created_at": None, "queued_at": None}, None),
    ],
)
def test_a_run_takes_its_place_when_it_is_made_or_cleared_after_its_end(run, place):
    instance = SimpleNamespace(queue="cpu", pool="cpu", priority_weight=1)
    policy.task_instance_mutation_hook(instance)
    assert instance.priority_weight == 1
    told = {"conf": None, "state": "running", "queued_at": NOON, **run}
    policy.task_instance_mutation_hook(instance, SimpleNamespace(**told))
    expected = policy.in_line(1, place or datetime.now(UTC))
    assert abs(instance.priority_weight - expected) <= (0 if place else 5)


def test_a_time_before_the_line_was_opened_is_its_beginning():
    long_ago = policy.in_line(1, NOON - timedelta(days=5000))
    assert long_ago > policy.in_line(1, NOON)
    assert policy.in_line(2, NOON) > long_ago


def test_a_sensor_that_occupies_a_slot_is_named_when_its_file_is_new(caplog, tmp_path):
    file = tmp_path / "dag.py"
    file.touch()
    dag = SimpleNamespace(fileloc=str(file))
    words = {"task_id": "waits", "queue": "cpu", "pool": "default_pool", "priority_weight": 1}
    words |= {"execution_timeout": timedelta(hours=1), "dag": dag}
    for more in ({"mode": "reschedule"}, {"mode": "poke", "deferrable": True}, {}):
        policy.task_policy(SimpleNamespace(**words, **more))
    assert caplog.messages == []
    policy.task_policy(SimpleNamespace(**words, mode="poke"))
    assert caplog.messages == [
        f"{file}: sensor waits occupies a slot of pool cpu while it waits; set mode='reschedule' "
        "or deferrable=True"
    ]
    os.utime(file, (1, 1))
    policy.task_policy(SimpleNamespace(**words, mode="poke"))
    assert len(caplog.messages) == 1
