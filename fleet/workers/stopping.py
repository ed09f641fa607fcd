"""A worker's end, and the sign by which its health check knows that it lives."""

import contextlib
import os
from pathlib import Path
from typing import Any

import psutil
from celery import signals

ALIVE_VARIABLE = "FLEET_ALIVE_FILE"
"""Names the file that a worker touches with each heartbeat that it could send to the broker."""


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
    """Leave a sign for the health check: the event loop turns, and the broker answers."""
    if path := os.environ.get(ALIVE_VARIABLE):
        Path(path).touch()
