"""Set up a worker's pool processes, one per slot: assign GPUs, drop inherited connections."""

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
    """Set this pool process's GPU, in a variable that the commands of its tasks inherit.

    The process's number selects the GPU. Pool processes are numbered from 0. A process that
    replaces a dead process gets the number of the dead process.
    """
    if uuids := slot_gpus():
        os.environ[VISIBLE_VARIABLE] = uuids[billiard.current_process().index]


@signals.worker_process_init.connect
def let_go_of_the_workers_connections(**_: Any) -> None:
    """Drop the connections that this pool process inherited by fork.

    The replacement of a dead process is forked from a worker that is already connected to Redis.
    If that worker were killed, the replacement would keep the connection open. Redis would then
    send messages over the connection, and these messages would be lost. The connection's file
    descriptor is not closed but redirected to /dev/null, so that the object that owns the
    descriptor can still close it.
    """
    with Path(os.devnull).open("r+b", buffering=0) as nothing:
        for connection in psutil.Process().net_connections("tcp"):
            if connection.raddr:
                os.dup2(nothing.fileno(), connection.fd, inheritable=False)
