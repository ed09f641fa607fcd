"""Names, mounts and environment of the Docker way's containers, tested without an engine."""

from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException

from fleet.operators.containers import (
    container_environment,
    container_name,
    digest,
    inherited_mounts,
    is_waited_for,
    is_worth_following,
    labels_of,
)

TI = {"dag_id": "dag", "run_id": "run", "task_id": "train", "map_index": -1, "try_number": 2}


def ti(**other) -> SimpleNamespace:
    return SimpleNamespace(**TI | other)


def test_a_container_is_named_by_its_task_and_not_by_its_try():
    name = container_name("stack", ti())
    assert name == container_name("stack", ti(try_number=3))
    others = [{"dag_id": "x"}, {"run_id": "x"}, {"task_id": "x"}, {"map_index": 0}]
    names = {container_name("stack", ti(**other)) for other in others}
    names |= {
        container_name("other", ti()),
        container_name("stack", ti(dag_id="da", run_id="grun")),
    }
    assert len(names | {name}) == 7
    assert len(name) < 64


WORKER = {
    "Mounts": [
        {
            "Type": "volume",
            "Name": "music-genre_artifacts",
            "Source": "/var/lib/docker/volumes/music-genre_artifacts/_data",
            "Destination": "/artifacts",
            "RW": True,
        },
        {"Type": "bind", "Source": "/home/us/music", "Destination": "/data", "RW": False},
    ]
}


def test_mounts_are_the_workers_and_no_wider():
    artifacts, data = inherited_mounts(WORKER, ["/artifacts", "/data"])
    assert artifacts == {
        "Type": "volume",
        "Source": "music-genre_artifacts",
        "Target": "/artifacts",
        "ReadOnly": False,
    }
    assert (data["Source"], data["ReadOnly"]) == ("/home/us/music", True)
    assert inherited_mounts(WORKER, []) == []


def test_a_mount_that_the_worker_has_not_is_named():
    with pytest.raises(
        AirflowFailException, match=r"no mount at \['/models'\], only at \['/artifacts'"
    ):
        inherited_mounts(WORKER, ["/models", "/data"])


def test_a_container_knows_nothing_of_the_worker_but_what_a_command_needs():
    worker = {
        "MUSIC_GENRE_ARTIFACTS": "/artifacts",
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "OMP_NUM_THREADS": "2",
        "AIRFLOW__CELERY__BROKER_URL": "redis://worker:secret@redis",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "PATH": "/bin",
    }
    given = container_environment(worker, {"MUSIC_GENRE_ARTIFACTS": "/a"}, {"TOKEN": "t"})
    assert given == {
        "MUSIC_GENRE_ARTIFACTS": "/a",
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "OMP_NUM_THREADS": "2",
        "TOKEN": "t",
    }


@pytest.mark.parametrize(
    ("state", "is_worth"),
    [
        ({"Running": True, "Status": "running", "ExitCode": 0}, True),
        ({"Running": False, "Status": "exited", "ExitCode": 0}, True),
        ({"Running": False, "Status": "exited", "ExitCode": 1}, False),
        ({"Running": False, "Status": "exited", "ExitCode": 137}, False),
        ({"Running": False, "Status": "created", "ExitCode": 0}, False),
    ],
)
def test_what_does_or_did_the_same_command_is_followed(state, is_worth):
    labels = labels_of("stack", ti(), digest("image", ["train"]))
    found = {"State": state, "Config": {"Labels": labels}}
    assert (
        is_worth_following(found, labels_of("stack", ti(try_number=3), labels[COMMAND])) is is_worth
    )
    other = labels_of("stack", ti(), digest("image:2", ["train"]))
    assert is_worth_following(found, other) is False


COMMAND = "music-genre.command"


@pytest.mark.parametrize(
    ("map_index", "states", "is_waited"),
    [
        (-1, {"run": {"train": "running"}}, True),
        (-1, {"run": {"train": "up_for_retry"}}, True),
        (-1, {"run": {"train": None}}, True),
        (-1, {"run": {"train": "failed"}}, False),
        (-1, {"run": {"train": "success"}}, False),
        (-1, {"run": {}}, False),
        (-1, {}, False),
        (3, {"run": {"train_3": "queued", "train_2": "failed"}}, True),
        (2, {"run": {"train_3": "queued", "train_2": "failed"}}, False),
    ],
)
def test_airflow_tells_whether_a_container_is_waited_for(map_index, states, is_waited):
    asked = []

    def get_task_states(**question):
        asked.append(question)
        return states

    labels = labels_of("stack", ti(map_index=map_index), "x")
    assert is_waited_for(SimpleNamespace(get_task_states=get_task_states), labels) is is_waited
    assert asked == [{"dag_id": "dag", "run_ids": ["run"], "task_ids": ["train"]}]
