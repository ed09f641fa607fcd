"""When the embedded stack's servers count as started, on the real ones."""

import contextlib
import socket
import subprocess
import time

import pytest

from deploy.embedded import stack as embedded
from deploy.embedded.processes import components, write_redis_config
from deploy.embedded.state import Launch, State, choose_ports


@pytest.fixture
def state(tmp_path):
    state = State(tmp_path / "state")
    state.folder.mkdir()
    state.prepare()
    state.logs.mkdir(exist_ok=True)
    state.save_launch(Launch(**choose_ports(0, 0), scheduled=True))
    embedded._ensure_database(state, lambda line: None)
    write_redis_config(state)
    return state


@contextlib.contextmanager
def running(state, name):
    component = components(state)[name]
    process = subprocess.Popen(
        component.command,
        env=component.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: listens(getattr(state.launch(), name)))
        yield
    finally:
        process.terminate()
        process.wait(20)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_until(is_so) -> None:
    give_up_at = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


def test_a_server_that_listens_but_recovers_its_data_is_waited_for(state):
    """A standby that nobody may read refuses as one that recovers does."""
    recovers = state.postgres / "standby.signal"
    recovers.touch()
    (state.postgres / "postgresql.auto.conf").write_text("hot_standby = off\n")
    with running(state, "redis"):
        with running(state, "postgres"):
            assert not embedded.servers_answer(state)
        recovers.unlink()
        with running(state, "postgres"):
            wait_until(lambda: embedded.servers_answer(state))
    with pytest.raises(OSError, match="refused"):
        embedded._redis_answers(state)
