import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.contract import ContractError, Queue, queues, read_contract


def test_the_projects_contract_has_a_queue_for_each_kind_of_work():
    assert list(queues()) == ["cpu", "gpu"]
    assert not queues()["cpu"].wants_gpu
    assert queues()["gpu"].wants_gpu


@given(st.sampled_from(["cores", "gpus", 1, 3]), st.integers(1, 256), st.integers(0, 16))
def test_a_worker_always_has_a_slot_and_never_two_tasks_a_gpu(slots, n_cores, n_gpus):
    n_slots = Queue("any", "any", slots).n_slots(n_cores, n_gpus)
    assert n_slots >= 1
    if slots == "gpus":
        assert n_slots == max(1, n_gpus)
    if slots == "cores":
        assert n_slots == n_cores
    if isinstance(slots, int):
        assert n_slots == slots


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "names no queue"),
        ("queues = [", "not valid TOML"),
        ("[queues.a]\npurpose = 'x'\n", "['purpose']"),
        ("[queues.a]\npurpose = 'x'\nslots = 1\nslot = 2\n", "'slot'"),
        ("[queues]\na = 3\n", "int"),
        ("[queues.a]\npurpose = 'x'\nslots = 0\n", "slots of queue 'a'"),
        ("[queues.a]\npurpose = 'x'\nslots = true\n", "slots of queue 'a'"),
        ("[queues.a]\npurpose = 'x'\nslots = 'gpu'\n", "'gpu'"),
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
