"""Celery's settings, and what a worker does beyond them.

Airflow imports this module, by `[celery] celery_config_options`, in every process that speaks to
Celery: the scheduler, which sends tasks, the workers and Flower.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import billiard
import psutil
from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG
from celery import signals
from celery.worker.control import Panel, inspect_command
from celery.worker.request import Request

from fleet.gpus import SLOTS_VARIABLE, VISIBLE_VARIABLE, slot_gpus
from fleet.messages import Leases, unless_moot

ALIVE_VARIABLE = "FLEET_ALIVE_FILE"
"""Names the file that a worker touches with each heartbeat that it could send to the broker."""

# A task's argument is its workload, with the token that lets it report as that task. Events and
# the answers of `inspect` carry arguments to whoever listens, Flower to begin with.
CELERY_CONFIG = {**DEFAULT_CELERY_CONFIG, "task_send_sent_event": False}


# Whoever may ask workers may end a task or a worker, and no more: queue and slots are the
# contract's, and `election` would have a worker send tasks for others.
ALLOWED = {
    *("active", "active_queues", "clock", "conf", "hello", "ping", "query_task", "registered"),
    *("report", "reserved", "revoked", "scheduled", "stats"),
    *("disable_events", "enable_events", "heartbeat", "revoke", "shutdown", "terminate"),
}
for name in Panel.data.keys() - ALLOWED:
    del Panel.data[name]


@signals.before_task_publish.connect
def hide_arguments(headers: dict[str, Any], **_: Any) -> None:
    """Put a word in the place of the arguments' text, which events carry."""
    headers["argsrepr"] = headers["kwargsrepr"] = "hidden"


@signals.worker_init.connect
def hide_arguments_from_inspect(**_: Any) -> None:
    """Have `inspect active` and its like answer with that text too."""
    info = Request.info
    Request.info = lambda request, **_: info(request, safe=True)


@signals.worker_process_init.connect
def own_gpu(**_: Any) -> None:
    """Give this pool process its GPU, which its tasks' commands inherit.

    Processes are numbered from 0; one that takes a dead one's place takes its number too.
    """
    if uuids := slot_gpus():
        os.environ[VISIBLE_VARIABLE] = uuids[billiard.current_process().index]


@signals.worker_process_init.connect
def let_go_of_the_workers_connections(**_: Any) -> None:
    """Give up the connections that this pool process was forked with.

    One that takes a dead one's place is forked from a worker that already speaks to Redis. Where
    the worker is killed, Redis would send messages to it for as long as this process lives: lost.
    What owns a connection may still close it: what it closes is /dev/null.
    """
    with Path(os.devnull).open("r+b", buffering=0) as nothing:
        for connection in psutil.Process().net_connections("tcp"):
            if connection.raddr:
                os.dup2(nothing.fileno(), connection.fd, inheritable=False)


@inspect_command()
def slots(state: Any) -> dict[str, Any]:  # noqa: ARG001
    """Answer whoever asks with the number of this worker's slots and their GPUs."""
    return {"slots": int(os.environ[SLOTS_VARIABLE]), "gpus": slot_gpus()}


@signals.worker_init.connect
def hold_messages_by_lease(sender: Any, **_: Any) -> None:
    """Add the leases, and wrap the task of all messages before pool processes take it over."""
    sender.app.steps["consumer"].add(Leases)
    task = sender.app.tasks["execute_workload"]
    task.run = unless_moot(task.run)


@signals.worker_shutting_down.connect
def stop_tasks(**_: Any) -> None:
    """Have a stopping worker stop its tasks, which go on elsewhere, instead of wait for their end.

    Each pool process that has a child runs a task, and passes SIGTERM on to it; one that has none
    is idle, and Celery ends it.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        for supervisor in psutil.Process().children():
            if supervisor.children():
                supervisor.terminate()


@signals.heartbeat_sent.connect
def touch_alive_file(**_: Any) -> None:
    """Leave a sign for `python -m fleet.health alive`: the event loop turns, the broker answers."""
    if path := os.environ.get(ALIVE_VARIABLE):
        Path(path).touch()
