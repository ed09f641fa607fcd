"""Airflow's pools of the contract, with as many slots as live workers have.

So a task waits in its pool, where it is `scheduled`: priorities count, and no time-out of a queue
or of a token runs.
"""

import sys
from typing import Any

from airflow.models.pool import Pool

from fleet.contract import Queue, pools, queues

ANSWER_SECONDS = 3.0
"""How long workers are waited for; a live one answers in hundredths."""


def sync_pools() -> None:
    """Set each pool to the slots of the workers that answer now, and print it."""
    from airflow.providers.celery.executors.celery_executor import app

    inspect = app.control.inspect(timeout=ANSWER_SECONDS)
    workers = {name: stats["pool"] for name, stats in (inspect.stats() or {}).items()}
    gpus = inspect._request("gpus") or {}
    for name, its_queues in pools(queues()).items():
        slots, description = describe(its_queues, workers, gpus)
        Pool.create_or_update_pool(name, slots, description, include_deferred=False)
        print(f"pool {name}: {description}", file=sys.stderr)


def make_missing_pools() -> None:
    """Make the pools that are not there, so that their tasks run before the first `sync_pools`."""
    for name in pools(queues()):
        if Pool.get_pool(name) is None:
            Pool.create_or_update_pool(name, 1, "not yet counted", include_deferred=False)


def describe(
    its_queues: list[Queue], workers: dict[str, dict[str, Any]], gpus: dict[str, list[str]]
) -> tuple[int, str]:
    """Count slots and put them into words; one that is no GPU says so.

    Args:
        its_queues: the queues of one pool.
        workers: Celery's name of each live worker, `queue@host` → its pool's statistics.
        gpus: the same names → UUIDs of the GPUs that its slots own.
    """
    names = {queue.name for queue in its_queues}
    mine = sorted(name for name in workers if name.partition("@")[0] in names)
    slots = sum(int(workers[name]["max-concurrency"]) for name in mine)
    without = [name for name in mine if not gpus.get(name)]
    shown = f"{slots} slots of {', '.join(mine) or 'no worker'}"
    return slots, f"{shown}; on the CPU: {', '.join(without)}" if without else shown
