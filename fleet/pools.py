"""The contract's Airflow pools; each has as many slots as its live workers.

Because of this size, a task without a free slot waits in its pool, in the state `scheduled`. In
this state priorities have an effect, and neither the queued time-out nor the lifetime of the task's
token has begun.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

from airflow.models.pool import Pool

from fleet.contract import Queue, pools, queues

ANSWER_SECONDS = 3.0
"""How long one request collects answers; a live worker answers in hundredths of a second."""
PATIENCE_SECONDS = 30.0
"""How long to repeat the request: while a machine starts, its workers can be slow to answer."""


def sync_pools() -> None:
    """Give each pool as many slots as its answering workers have, and print its description.

    Raises:
        SystemExit: no worker of a pool answers; that pool is not changed.
    """
    workers = _ask_workers()
    silent = []
    for name, its_queues in pools(queues()).items():
        slots, description = describe(its_queues, workers)
        if slots == 0:
            silent.append(name)
            continue
        Pool.create_or_update_pool(name, slots, description, include_deferred=False)
        print(f"pool {name}: {description}", file=sys.stderr)
    if silent:
        raise SystemExit(
            f"error: no worker of pool {', '.join(silent)} has answered for {PATIENCE_SECONDS:.0f} "
            "s, so the pool is unchanged; start a worker and run `python -m fleet sync-pools` again"
        )


def _ask_workers() -> dict[str, dict[str, Any]]:
    """Ask all workers for their slots; returns worker's Celery name → its answer.

    The request is repeated until a worker of each queue with a pool answers, or until
    `PATIENCE_SECONDS` have passed.
    """
    from airflow.providers.celery.executors.celery_executor import app

    wanted = {queue.name for its_queues in pools(queues()).values() for queue in its_queues}
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    workers: dict[str, dict[str, Any]] = {}
    while time.monotonic() < give_up_at:
        workers = app.control.inspect(timeout=ANSWER_SECONDS)._request("slots") or {}
        if wanted <= {name.partition("@")[0] for name in workers}:
            break
    return workers


def make_missing_pools() -> None:
    """Create missing pools with one slot, so that tasks can run before the first `sync_pools`."""
    description = "one slot, until the slots of the workers are counted"
    for name in pools(queues()):
        if Pool.get_pool(name) is None:
            Pool.create_or_update_pool(name, 1, description, include_deferred=False)


def describe(its_queues: list[Queue], workers: Mapping[str, Mapping[str, Any]]) -> tuple[int, str]:
    """Count and describe a pool's slots.

    The description names workers without a GPU. A GPU that two workers report counts once.

    Args:
        its_queues: the queues of the pool.
        workers: live worker's Celery name, `queue@host` → its answer: the number of its `slots`,
            and the UUIDs of its `gpus`.
    """
    names = {queue.name for queue in its_queues}
    mine = {name: workers[name] for name in sorted(workers) if name.partition("@")[0] in names}
    without = [name for name, found in mine.items() if not found["gpus"]]
    gpus = [gpu for found in mine.values() for gpu in found["gpus"]]
    slots = len(set(gpus)) + sum(int(mine[name]["slots"]) for name in without)
    shown = f"{slots} slots of {', '.join(mine) or 'no worker'}"
    if without:
        shown += f"; on the CPU: {', '.join(without)}"
    if shared := sorted({gpu for gpu in gpus if gpus.count(gpu) > 1}):
        shown += f"; GPUs given to more than one worker: {', '.join(shared)}"
    return slots, shown
