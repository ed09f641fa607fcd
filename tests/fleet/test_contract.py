import pytest

from fleet.contract import ContractError, queues, read_contract


def test_the_projects_contract_has_a_queue_for_each_kind_of_work():
    assert [(queue.name, queue.resource) for queue in queues().values()] == [
        ("cpu", "cpu"),
        ("gpu", "gpu"),
    ]


def test_a_gpu_worker_runs_one_task_at_a_time():
    """Until each pool process has a GPU of its own, a second task would share the first one's."""
    assert queues()["gpu"].n_slots(n_cores=64) == 1


@pytest.mark.parametrize(("slots", "expected"), [("'cores'", 16), ("1", 1), ("3", 3)])
def test_slots_are_a_number_or_the_machines_cores(tmp_path, slots, expected):
    path = tmp_path / "queues.toml"
    path.write_text(f"[queues.a]\npurpose = 'x'\nresource = 'cpu'\nslots = {slots}\n")
    assert read_contract(path)["a"].n_slots(n_cores=16) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "names no queue"),
        ("queues = [", "not valid TOML"),
        ("[queues.a]\npurpose = 'x'\n", "['purpose']"),
        ("[queues.a]\npurpose = 'x'\nslots = 1\nslot = 2\n", "'slot'"),
        ("[queues.a]\npurpose = 'x'\nresource = 'tpu'\nslots = 1\n", "'tpu'"),
        ("[queues]\na = 3\n", "int"),
        ("[queues.a]\npurpose = 'x'\nresource = 'cpu'\nslots = 0\n", "slots of queue 'a'"),
        ("[queues.a]\npurpose = 'x'\nresource = 'cpu'\nslots = true\n", "slots of queue 'a'"),
        ("[queues.a]\npurpose = 'x'\nresource = 'cpu'\nslots = 'gpu'\n", "'gpu'"),
    ],
)
def test_a_contract_nobody_could_follow_is_refused_in_one_line(tmp_path, text, found):
    path = tmp_path / "queues.toml"
    path.write_text(text)
    with pytest.raises(ContractError) as error:
        read_contract(path)
    assert found in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_contract_is_refused(tmp_path):
    with pytest.raises(ContractError, match="missing; restore"):
        read_contract(tmp_path / "none.toml")
