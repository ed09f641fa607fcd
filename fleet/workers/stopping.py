"""Stop the tasks of a stopping worker, and touch the file that its health check reads."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from celery import signals

from fleet.contract import FINISH_SECONDS, GPU_LOCKS
from fleet.kernel import HANDS_BACK

ALIVE_VARIABLE = "FLEET_ALIVE_FILE"
"""The environment variable that names the file that a worker touches after each heartbeat."""


@signals.worker_shutting_down.connect
def stop_tasks(**_: Any) -> None:
    """Make a stopping worker stop its tasks; Celery alone would wait for hours until they end.

    Tasks of our operators are stopped at once, because Airflow starts them again without using up
    a try. Any other task would lose a try, so it gets `FINISH_SECONDS` to end by itself.
    """
    for supervisor, names in _supervisors():
        if HANDS_BACK in names:
            supervisor.terminate()
    timer = threading.Timer(FINISH_SECONDS, _terminate_all)
    timer.daemon = True
    timer.start()


def _supervisors() -> Iterator[tuple[psutil.Process, set[str]]]:
    """Yield each pool process that runs a task, with the names of its child processes.

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
    """Tell the health check that the event loop runs; protect the GPU locks' folder from deletion.

    systemd-tmpfiles deletes files and folders in /var/tmp that were not used for 30 days. If it
    deleted the locks' folder, a running container would keep its locks in the deleted folder, which
    no other process sees. Two trainings could then use one GPU.
    """
    if path := os.environ.get(ALIVE_VARIABLE):
        Path(path).touch()
    with contextlib.suppress(OSError):  # not every machine has this folder
        os.utime(GPU_LOCKS)
