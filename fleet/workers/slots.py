"""A worker's pool processes, one per slot: the GPU of each, and what it must not inherit."""

import os
from pathlib import Path
from typing import Any

import billiard
import psutil
from celery import signals

from fleet.contract import VISIBLE_VARIABLE
from fleet.workers.gpus import slot_gpus


@signals.worker_process_init.connect
def own_gpu(**_: Any) -> None:
    """Give this pool process its GPU, which its tasks' commands inherit.

    Processes are numbered from 0; the replacement of a dead process gets the same number.
    """
    if uuids := slot_gpus():
        os.environ[VISIBLE_VARIABLE] = uuids[billiard.current_process().index]


@signals.worker_process_init.connect
def let_go_of_the_workers_connections(**_: Any) -> None:
    """Drop the connections that this pool process inherited by fork.

    The replacement of a dead process is forked from a worker that is already connected to Redis.
    If the worker is killed, Redis would send messages to that connection for as long as this
    process lives, and they would be lost. Each connection is replaced by /dev/null, so that its
    owner can still close it.
    """
    with Path(os.devnull).open("r+b", buffering=0) as nothing:
        for connection in psutil.Process().net_connections("tcp"):
            if connection.raddr:
                os.dup2(nothing.fileno(), connection.fd, inheritable=False)
