"""When the embedded stack's servers count as started; tested with real servers."""

import contextlib
import socket
import subprocess
import time

import pytest

from deploy.embedded import stack as embedded
from deploy.embedded.processes import programs, write_redis_config
from deploy.embedded.state import Launch, State, choose_ports
from fleet.contract import queues

USERS = ("scheduler", "worker", "flower", "housekeeper")


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
    program = programs(state)[name]
    process = subprocess.Popen(
        program.command,
        env=program.environment,
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
    """A standby without hot_standby refuses connections, like a server in recovery."""
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


def say(state, *lines: str) -> list[str]:
    """Send lines to Redis; returns the first line of each answer, also of answers to `AUTH`."""
    with socket.create_connection(("127.0.0.1", state.launch().redis), timeout=5) as connection:
        with connection.makefile("rw", newline="\r\n") as stream:
            return [_answer(stream, line) for line in lines]


def _answer(stream, line: str) -> str:
    stream.write(f"{line}\n")
    stream.flush()
    return stream.readline().strip()


def test_redis_has_a_user_for_each_kind_of_process_as_in_containers(state):
    keys = state.secrets()
    logins = {user: f"AUTH {user} {keys.of(f'REDIS_{user.upper()}_PASSWORD')}" for user in USERS}
    with running(state, "redis"):
        assert "NOAUTH" in say(state, "PING")[0]
        assert "WRONGPASS" in say(state, f"AUTH flower {keys.redis_worker_password}")[0]
        for user, login in logins.items():
            assert say(state, login, "PING") == ["+OK", "+PONG"], user
            assert "NOPERM" in say(state, login, "FLUSHALL")[1], user
        for queue in queues():
            assert say(state, logins["worker"], f"LPUSH {queue} x")[1] == ":1"
            assert say(state, logins["flower"], f"LLEN {queue}")[1] == ":1"
            for user in ("flower", "housekeeper"):
                assert "NOPERM" in say(state, logins[user], f"LPUSH {queue} x")[1], user
            assert "NOPERM" in say(state, logins["housekeeper"], f"LLEN {queue}")[1]


def test_a_restart_of_redis_forgets_no_transaction(state):
    """Celery puts messages back into their queue, and acknowledges messages, in transactions."""
    login = f"AUTH worker {state.secrets().redis_worker_password}"
    with running(state, "redis"):
        said = say(state, login, "MULTI", "LPUSH cpu x", "HSET unacked tag x", "EXEC")
        assert said[-1] == "*2"
    with running(state, "redis"):
        wait_until(lambda: say(state, login, "PING")[1] == "+PONG")
        assert say(state, login, "LLEN cpu", "HLEN unacked") == ["+OK", ":1", ":1"]
        assert "NOAUTH" in say(state, "LLEN cpu")[0]
        assert "WRONGPASS" in say(state, "AUTH default x")[0]
