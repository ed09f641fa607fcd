"""Watching containers on an engine that cuts connections; tests/stack uses a real engine."""

import gc

import pytest
from airflow.sdk.exceptions import AirflowException
from docker.errors import APIError

from fleet.docker_operator import ResumableDockerOperator as OldAddress
from fleet.operators import containers
from fleet.operators.containers import Container
from fleet.operators.docker import ResumableDockerOperator
from tests.fakes.docker_engine import CUT, Engine, misbehaving


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(containers, "LOOK_AGAIN_SECONDS", 0.01)


def entry(second: int, text: str) -> bytes:
    return f"2026-11-26T15:00:{second:02d}.000000000Z {text}\n".encode()


def watching(engine: Engine) -> tuple[ResumableDockerOperator, list[str]]:
    operator = ResumableDockerOperator(
        task_id="task", image="image", command=["train"], docker_url=engine.address
    )
    lines: list[str] = []
    operator._container = Container(operator.cli, "music-genre-1", lines.append)
    return operator, lines


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_each_line_comes_once_however_often_the_stream_breaks():
    first, second, third = (entry(n, f"epoch={n}") for n in (1, 2, 3))
    damaged = b"Error grabbing logs: unexpected EOF\n"
    streams = [[first, CUT], 503, [damaged], [first, second], [second, third]]
    with misbehaving(Engine(streams)) as engine:
        operator, lines = watching(engine)
        assert operator._container.watch()["ExitCode"] == 0
    assert lines == ["epoch=1", damaged.decode().strip(), "epoch=2", "epoch=3"]
    del operator
    # docker-py leaves the socket of a cut answer open. Collect the socket now, so that Python warns
    # of it in this test, which ignores the warning.
    gc.collect()
    assert "since" not in engine.asked[0]
    assert len({asked["since"][0] for asked in engine.asked[1:4]}) == 1


def test_lines_of_many_pieces_and_none_at_all_are_lines():
    pieces = [b"2026-11-26T15:00:01.000000000Z begin", b"2026-11-26T15:00:01.000000001Z ning\n"]
    with misbehaving(Engine([pieces], exit_code=75)) as engine:
        operator, lines = watching(engine)
        assert operator._container.watch()["ExitCode"] == 75
    assert lines == ["beginning"]


@pytest.mark.parametrize("result", ['{"n": 3}', '{"name": "\u2028"}', f'{{"x": "{"y" * 40_000}"}}'])
def test_the_result_is_the_last_line_on_standard_output(result):
    """All of standard output is read: the engine's `tail` would count standard error too."""
    pieces = [result.encode()[start : start + 16384] for start in range(0, len(result), 16384)]
    with misbehaving(Engine([[b"text\n", *pieces, b"\n"]])) as engine:
        operator, _ = watching(engine)
        assert operator._container.last_line() == result
    (asked,) = engine.asked
    assert (asked["stdout"], asked["stderr"], asked["tail"]) == (["1"], ["0"], ["all"])


def test_an_engine_that_stays_away_ends_the_try(monkeypatch):
    monkeypatch.setattr(containers, "ENGINE_AWAY_SECONDS", 0.2)
    with misbehaving(Engine([[entry(1, "epoch=1")], 503], exit_code=None)) as engine:
        operator, lines = watching(engine)
        with pytest.raises(APIError, match="no server is available"):
            operator._container.watch()
    assert lines == ["epoch=1"]
    with pytest.raises(AirflowException, match=r"does not answer .*socket-proxy"):
        with operator._engine_errors():
            operator._container.inspect()


def test_where_no_engine_is_the_remedy_is_named():
    operator = ResumableDockerOperator(
        task_id="task", image="image", command=["train"], docker_url="tcp://127.0.0.1:9"
    )
    with pytest.raises(
        AirflowException, match=r"127\.0\.0\.1:9; start the stack with `make up DOC"
    ):
        operator._find_worker()


def test_what_would_undo_it_is_refused():
    with pytest.raises(TypeError, match=r"sets \['auto_remove'\] itself"):
        ResumableDockerOperator(task_id="task", image="i", command=["c"], auto_remove="force")


def test_only_image_and_command_are_rendered_for_all_to_see():
    operator = ResumableDockerOperator(
        task_id="task", image="i", command=["c"], private_environment={"TOKEN": "secret"}
    )
    assert tuple(operator.template_fields) == ("image", "command")


def test_the_slots_gpu_is_asked_for(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    operator = ResumableDockerOperator(task_id="task", image="i", command=["c"])
    tmpfs = {"/tmp": "mode=1777,exec,size=2g"}
    worker = {"HostConfig": {"Memory": 8, "ShmSize": 1, "Tmpfs": tmpfs}, "Mounts": []}
    (request,) = operator._host_settings(worker)["device_requests"]
    assert (request["DeviceIDs"], request["Capabilities"]) == (["GPU-1"], [["gpu"]])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    settings = operator._host_settings(worker)
    assert settings["device_requests"] is None
    assert (settings["mem_limit"], settings["shm_size"]) == (8, 1)
    assert settings["tmpfs"] == tmpfs


def test_the_old_address_still_works():
    assert OldAddress is ResumableDockerOperator
