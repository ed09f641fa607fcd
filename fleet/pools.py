"""The contract's Airflow pools; each has as many slots as its live workers.

Because of this size, a task without a free slot waits in its pool, in the state `scheduled`. In
this state priorities have an effect, and neither the queued time-out nor the lifetime of the task's
token has begun. The housekeeper, a process beside the scheduler, keeps the sizes right.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from airflow.models.pool import Pool
from airflow.providers.common.compat.sdk import timeout
from airflow.sdk.exceptions import AirflowTaskTimeout

from fleet.contract import Queue, pools, queues

ROUND_SECONDS = 5.0
"""Time between two rounds of questions to the workers."""
ANSWER_SECONDS = 3.0
"""How long a round collects answers; a live worker answers in hundredths of a second."""
ROUND_LIMIT = 20
"""Longest time of a round; while Redis is silent, Celery would try again without end."""
MISSES = 2
"""A worker counts as alive until it has missed this number of rounds and one more. A busy machine
can make a worker miss a round, and after a restart of Redis workers need seconds to connect."""
Answer = Mapping[str, Any]
"""A worker's answer: the number of its `slots`, and the UUIDs of its `gpus`."""
log = logging.getLogger(__name__)


def keep_house() -> NoReturn:
    """Keep the pools' sizes right for ever. Pools stay as they are while Redis does not answer."""
    workers, fault = Workers(ask_workers), ""
    while True:
        try:
            set_pools(workers.look(), only_grow=workers.n_rounds <= MISSES)
        except (Exception, AirflowTaskTimeout) as error:  # Redis or the database is away
            if str(error) != fault:
                log.error("error: pools: %s; they stay as they are", error)
            fault = str(error)
        else:
            fault = ""
        if alive := os.environ.get("FLEET_ALIVE_FILE"):
            Path(alive).touch()
        time.sleep(ROUND_SECONDS)


def ask_workers() -> dict[str, Answer]:
    """Ask all workers for their slots; returns worker's Celery name → its answer."""
    from airflow.providers.celery.executors.celery_executor import app

    with timeout(ROUND_LIMIT):
        found = app.control.inspect(timeout=ANSWER_SECONDS)._request("slots") or {}
    # A worker that was not started by `python -m fleet worker` answers with an error.
    return {name: answer for name, answer in found.items() if "slots" in answer}


class Workers:
    """The live workers, by their answers in the last rounds.

    Args:
        ask: asks all workers; returns worker's Celery name → its answer.
    """

    def __init__(self, ask: Callable[[], Mapping[str, Answer]]) -> None:
        self._ask = ask
        self._answers: dict[str, Answer] = {}
        self._misses: dict[str, int] = {}
        self.n_rounds = 0

    def look(self) -> Mapping[str, Answer]:
        """Ask all workers; returns live worker's Celery name → its last answer."""
        found = self._ask()
        self.n_rounds += 1
        self._answers |= found
        for name in list(self._answers):
            self._misses[name] = 0 if name in found else self._misses.get(name, 0) + 1
            if self._misses[name] > MISSES:
                del self._answers[name], self._misses[name]
        return self._answers


def set_pools(workers: Mapping[str, Answer], *, only_grow: bool = False) -> None:
    """Give each pool the slots of its workers; log what changes. A pool can have no slots.

    Args:
        workers: live worker's Celery name → its answer.
        only_grow: keep larger pools, because a live worker may not have answered yet.
    """
    for name, its_queues in pools(queues()).items():
        slots, description = describe(its_queues, workers)
        pool = Pool.get_pool(name)
        if pool and only_grow and slots < pool.slots:
            continue
        if pool is None or (pool.slots, pool.description) != (slots, description):
            Pool.create_or_update_pool(name, slots, description, include_deferred=False)
            log.info("pool %s: %s", name, description)


def make_missing_pools() -> None:
    """Create missing pools without slots; the housekeeper counts the workers' slots."""
    for name in pools(queues()):
        if Pool.get_pool(name) is None:
            words = "no slots, until the housekeeper has counted the workers"
            Pool.create_or_update_pool(name, 0, words, include_deferred=False)


def describe(its_queues: list[Queue], workers: Mapping[str, Answer]) -> tuple[int, str]:
    """Count and describe a pool's slots.

    The description names workers without a GPU. A GPU that two workers report counts once.

    Args:
        its_queues: the queues of the pool.
        workers: live worker's Celery name, `queue@host` → its answer.
    """
    names = {queue.name for queue in its_queues}
    mine = {name: workers[name] for name in sorted(workers) if name.partition("@")[0] in names}
    without = [name for name, found in mine.items() if not found["gpus"]]
    gpus = [gpu for found in mine.values() for gpu in found["gpus"]]
    slots = len(set(gpus)) + sum(int(mine[name]["slots"]) for name in without)
    without = [name for name in without if mine[name]["slots"]]
    shown = f"{slots} {'slot' if slots == 1 else 'slots'} of {', '.join(mine) or 'no worker'}"
    if without and any(queue.resource == "gpu" for queue in its_queues):
        shown += f"; on the CPU: {', '.join(without)}"
    if shared := sorted({gpu for gpu in gpus if gpus.count(gpu) > 1}):
        shown += f"; GPUs given to more than one worker: {', '.join(shared)}"
    return slots, shown
