"""A worker's pool processes, one a slot: the GPU of each, and what it must not inherit."""

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
