"""Stopping a worker, and the file by which its health check knows that it is alive."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from celery import signals

from fleet.contract import GPU_LOCKS
from fleet.kernel import HANDS_BACK

ALIVE_VARIABLE = "FLEET_ALIVE_FILE"
"""The environment variable that names the file a worker touches after each heartbeat it sends."""
FINISH_SECONDS = 20.0
"""A stopping worker leaves this time to tasks that cannot hand themselves back. It is shorter than
a lease, which a stopping worker does not renew, and than the stop time of both stacks."""


@signals.worker_shutting_down.connect
def stop_tasks(**_: Any) -> None:
    """Make a stopping worker stop its tasks; Celery alone would wait for hours until they end.

    Tasks of our operators are stopped at once, because Airflow starts them again without using up
    a try. Any other task would lose a try, so it gets some time to end by itself.
    """
    for supervisor, names in _supervisors():
        if HANDS_BACK in names:
            supervisor.terminate()
    timer = threading.Timer(FINISH_SECONDS, _terminate_all)
    timer.daemon = True
    timer.start()


def _supervisors() -> Iterator[tuple[psutil.Process, set[str]]]:
    """The pool processes that run a task, and the names of their children.

    A pool process with a child runs a task, and passes SIGTERM on to the child. A pool process
    without a child is idle, and Celery ends it.
    """
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if tasks := process.children():
                yield process, {task.name() for task in tasks}


def _terminate_all() -> None:
    for supervisor, _ in _supervisors():
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor.terminate()


@signals.heartbeat_sent.connect
def touch_files(**_: Any) -> None:
    """Tell the health check that the event loop runs, and keep the folder of the GPU locks.

    systemd-tmpfiles deletes from /var/tmp what was not used for 30 days. A running container would
    then lock in a folder that no other process sees, and two trainings could use one GPU.
    """
    if path := os.environ.get(ALIVE_VARIABLE):
        Path(path).touch()
    with contextlib.suppress(OSError):  # this machine has none
        os.utime(GPU_LOCKS)
