"""Stopping a worker, and the file by which its health check knows that it is alive."""

import contextlib
import os
from pathlib import Path
from typing import Any

import psutil
from celery import signals

ALIVE_VARIABLE = "FLEET_ALIVE_FILE"
"""The environment variable that names the file a worker touches after each heartbeat it sends."""


@signals.worker_shutting_down.connect
def stop_tasks(**_: Any) -> None:
    """Make a stopping worker stop its tasks instead of waiting for them; they are rescheduled.

    A pool process with a child runs a task, and passes SIGTERM on to the child. A pool process
    without a child is idle, and Celery ends it.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        for supervisor in psutil.Process().children():
            if supervisor.children():
                supervisor.terminate()


@signals.heartbeat_sent.connect
def touch_alive_file(**_: Any) -> None:
    """Tell the health check that the event loop runs and the broker answers."""
    if path := os.environ.get(ALIVE_VARIABLE):
        Path(path).touch()
