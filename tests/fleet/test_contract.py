"""The contract: its queues, the settings derived from it, and contracts that are refused."""

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.contract import (
    CONTRACT_PATH,
    GRACE_SECONDS,
    OUTAGE_SECONDS,
    ContractError,
    Queue,
    pools,
    queues,
    read_contract,
    settings,
)

GOOD = {
    "purpose": "'x'",
    "resource": "'gpu'",
    "slots": "'gpus'",
    "memory_gib": "2",
    "longest_run_minutes": "60",
    "pool": "'gpu'",
    "priority": "1",
}


def table(name: str = "a", **differing: str | None) -> str:
    lines = {**GOOD, **differing}
    body = "\n".join(f"{key} = {value}" for key, value in lines.items() if value is not None)
    return f"[queues.{name}]\n{body}\n"


@pytest.fixture
def contract(tmp_path):
    def write(*tables: str):
        path = tmp_path / "queues.toml"
        path.write_text("\n".join(tables))
        return read_contract(path)

    return write


def test_the_projects_contract_has_a_queue_for_each_kind_of_work():
    found = {(queue.name, queue.resource) for queue in queues().values()}
    assert found >= {("cpu", "cpu"), ("gpu", "gpu")}
    assert "gpu" in pools(queues())


@pytest.mark.parametrize(
    ("resource", "slots", "n_gpus", "expected"),
    [
        *(("cpu", "'cores'", 0, 16), ("cpu", "1", 0, 1), ("cpu", "40", 0, 40)),
        *(("gpu", "'gpus'", 4, 4), ("gpu", "'gpus'", 0, 1), ("gpu", "3", 4, 3)),
        # At most one slot for each GPU, because two tasks must never share a GPU.
        *(("gpu", "6", 4, 4), ("gpu", "'cores'", 4, 4), ("gpu", "'cores'", 0, 1)),
    ],
)
def test_slots_are_a_number_or_what_the_machine_has(contract, resource, slots, n_gpus, expected):
    queue = contract(table(resource=f"'{resource}'", slots=slots))["a"]
    assert queue.n_slots(n_cores=16, n_gpus=n_gpus, memory_gib=1000) == expected


def test_memory_for_fewer_tasks_means_fewer_slots(contract):
    queue = contract(table(resource="'cpu'", slots="'cores'", memory_gib="2"))["a"]
    assert queue.n_slots(n_cores=64, n_gpus=0, memory_gib=7.9) == 3
    assert queue.n_slots(n_cores=64, n_gpus=0, memory_gib=0.5) == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "defines no queue"),
        ("queues = [", "not valid TOML"),
        ("queues = 3", "defines no queue"),
        ("[queues]\na = 3\n", "int"),
        (table("Ab"), "has an invalid name"),
        (table().replace("[queues.a]", "[queues . a]"), "own line as [queues.a]"),
        (table(pool=None), "lacks the keys ['pool']"),
        (table(slot="1"), "unknown keys ['slot']"),
        (table(resource="'tpu'"), "'tpu'"),
        (table(slots="0"), "slots of queue 'a'"),
        (table(slots="true"), "slots of queue 'a'"),
        (table(slots="'gpu'"), "slots of queue 'a'"),
        (table(slots="[1]"), "slots of queue 'a'"),
        (table(resource="'cpu'"), "the queue's resource is not 'gpu'"),
        (table(memory_gib="0"), "memory_gib of queue 'a'"),
        (table(memory_gib="inf"), "memory_gib of queue 'a'"),
        (table(memory_gib="'2'"), "memory_gib of queue 'a'"),
        (table(longest_run_minutes="1.5"), "longest_run_minutes of queue 'a'"),
        (table(priority="16"), "priority of queue 'a'"),
        (table(pool="1"), "pool of queue 'a'"),
        (table(pool="''"), "pool of queue 'a'"),
        (table(larger="'b'"), "larger of queue 'a'"),
        (table(larger="'a'"), "makes a cycle with queue 'a'"),
        (table(larger="'b'") + table("b", larger="'a'"), "makes a cycle"),
        (table(larger="'b'") + table("b", resource="'cpu'", slots="1"), "which is not a gpu queue"),
    ],
)
def test_a_contract_nobody_could_follow_is_refused_in_one_line(contract, tmp_path, text, found):
    with pytest.raises(ContractError) as error:
        contract(text)
    assert found in str(error.value)
    assert str(tmp_path / "queues.toml") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_contract_is_refused(tmp_path):
    with pytest.raises(ContractError, match="missing; restore"):
        read_contract(tmp_path / "none.toml")


QUEUES = st.builds(
    Queue,
    name=st.text(min_size=1),
    purpose=st.just("x"),
    resource=st.sampled_from(["cpu", "gpu"]),
    slots=st.just(1),
    memory_gib=st.just(1),
    longest_run_minutes=st.integers(1, 100_000),
    pool=st.sampled_from(["cpu", "gpu", "other"]),
    priority=st.just(1),
)
CONTRACTS = st.lists(QUEUES, min_size=1).map(lambda listed: {q.name: q for q in listed})


@given(CONTRACTS)
def test_whatever_the_contract_its_time_outs_agree(contract):
    given = {name.rpartition("__")[2]: int(value) for name, value in settings(contract).items()}
    longest = max(queue.execution_timeout for queue in contract.values())
    # No message is delivered again while its task runs.
    assert timedelta(seconds=given["VISIBILITY_TIMEOUT"]) > longest + timedelta(minutes=1)
    # A lost message is found within 5 minutes, and no task fails because it waits.
    assert given["TASK_QUEUED_TIMEOUT"] + given["TASK_QUEUED_TIMEOUT_CHECK_INTERVAL"] <= 300
    assert given["NUM_STUCK_IN_QUEUED_RETRIES"] > 100_000
    # An outage of the api-server ends no task, and no running task counts as dead.
    allowed = given["MAX_FAILED_HEARTBEATS"] * given["MIN_HEARTBEAT_INTERVAL"]
    assert OUTAGE_SECONDS <= allowed < given["TASK_INSTANCE_HEARTBEAT_TIMEOUT"]
    # A token is renewed when a fifth of its life is left. That fifth is longer than an outage.
    assert given["JWT_EXPIRATION_TIME"] / 5 > OUTAGE_SECONDS
    # A stopping worker has ended before its tasks count as dead.
    assert given["TASK_INSTANCE_HEARTBEAT_TIMEOUT"] > GRACE_SECONDS


def test_compose_gives_every_container_the_grace_of_the_contract():
    compose = (CONTRACT_PATH.parent.parent / "docker-compose.yml").read_text()
    assert re.search(rf"^  stop_grace_period: {GRACE_SECONDS}s$", compose, re.M)
