"""Airflow's cluster policy: rules for every task of every DAG.

Airflow finds these functions through `fleet/config/airflow_local_settings.py`. Airflow calls
`task_policy` for each task when a DAG file is parsed: in the dag-processor, and in a worker that is
about to run a task of that file. Airflow calls `task_instance_mutation_hook` when a run's task
instances are created.
"""

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.exceptions import AirflowClusterPolicyViolation
from airflow.sdk.exceptions import AirflowTaskTimeout

from fleet.contract import LEVELS, Queue, queues

DEFAULT_POOL = "default_pool"
NEW_SECONDS = 20
"""A DAG file counts as new for so long; in this time it is parsed once or twice."""
GPU_QUEUE = "gpu_queue"
"""The run parameter that sends a run's gpu tasks to a queue with larger GPUs."""


def task_policy(task: Any) -> None:
    """Refuse an unknown queue; give the task its queue's pool, priority and time limit.

    No worker serves an unknown queue. Without this check, the task would wait until Airflow's
    queued time-out and then fail without a reason.

    Raises:
        AirflowClusterPolicyViolation: the queue, pool or time limit is refused. The UI and the API
            show the error as the file's import error.
    """
    queue = queues().get(task.queue)
    if queue is None:
        raise AirflowClusterPolicyViolation(
            f"{task.dag.fileloc}: task {task.task_id} names queue {task.queue!r}, which no worker "
            f"serves; write one of {', '.join(queues())}"
        )
    _take_pool(task, queue)
    if task.priority_weight == 1:
        task.priority_weight = queue.priority
    task.priority_weight = min(max(task.priority_weight, -LEVELS), LEVELS)
    _limit_run(task, queue)
    _warn_of_a_sensor(task)


def _take_pool(task: Any, queue: Queue) -> None:
    """Put a task into its queue's pool; refuse another pool for a task of a gpu queue.

    In another pool the task would not wait for a free GPU. A task of a cpu queue may name another
    pool, for example to limit the calls of a service.
    """
    if task.pool == DEFAULT_POOL:
        task.pool = queue.pool
    if task.pool != queue.pool and queue.resource == "gpu":
        raise AirflowClusterPolicyViolation(
            f"{task.dag.fileloc}: task {task.task_id} names pool {task.pool!r}, but tasks of queue "
            f"{queue.name} wait in pool {queue.pool}; remove the task's pool argument"
        )


def _limit_run(task: Any, queue: Queue) -> None:
    """Give a task that has no time limit the queue's limit; refuse a task whose limit is longer.

    With a longer limit than the queue's, the task's message could be redelivered while the task
    still runs.
    """
    if task.execution_timeout is None:
        task.execution_timeout = queue.execution_timeout
        for name in ("on_failure_callback", "on_retry_callback"):
            given = getattr(task, name) or []  # one function, or a list of functions
            setattr(task, name, [*([given] if callable(given) else given), tell_whose_limit])
    elif task.execution_timeout > queue.execution_timeout:
        raise AirflowClusterPolicyViolation(
            f"{task.dag.fileloc}: task {task.task_id} may run for {task.execution_timeout}, longer "
            f"than queue {queue.name} allows ({queue.execution_timeout}); lower the task's "
            "execution_timeout, or raise the queue's longest_run_minutes in deploy/queues.toml"
        )


def tell_whose_limit(context: Mapping[str, Any]) -> None:
    """Log that a task hit its queue's time limit; Airflow itself logs only `Timeout, PID: 248`."""
    if isinstance(context.get("exception"), AirflowTaskTimeout):
        task = context["task"]
        logging.getLogger(__name__).error(
            "error: the task was stopped after %s, the time limit of queue %s; raise the queue's "
            "longest_run_minutes in deploy/queues.toml, or, for a sensor, set mode='reschedule'",
            task.execution_timeout,
            task.queue,
        )


def is_new(path: str) -> bool:
    """Whether a DAG file has just changed; each file is parsed twice a minute."""
    try:
        return time.time() - Path(path).stat().st_mtime < NEW_SECONDS
    except OSError:
        return False


def _warn_of_a_sensor(task: Any) -> None:
    """Log a warning if a task of a changed file occupies a slot of its pool only to wait.

    If it waits for a task of the same pool, as many such tasks as the pool has slots would wait for
    ever.
    """
    is_waiting = getattr(task, "mode", None) == "poke" and not getattr(task, "deferrable", False)
    if is_waiting and is_new(task.dag.fileloc):
        logging.getLogger(__name__).warning(
            "%s: sensor %s occupies a slot of pool %s while it waits; set mode='reschedule' or "
            "deferrable=True",
            task.dag.fileloc,
            task.task_id,
            task.pool,
        )


def task_instance_mutation_hook(task_instance: Any, dag_run: Any = None) -> None:
    """Send a gpu task to the queue that the run parameter `gpu_queue` names; put tasks into line.

    `in_line` explains the line.
    """
    wanted = ((dag_run.conf if dag_run else None) or {}).get(GPU_QUEUE)
    own, other = queues().get(task_instance.queue), queues().get(str(wanted))
    if own and other and own.name != other.name and own.resource == other.resource == "gpu":
        task_instance.queue = other.name
        task_instance.pool = other.pool
    if dag_run is not None:
        task_instance.priority_weight = in_line(task_instance.priority_weight, arrival(dag_run))


PLACES = 2**26
"""The number of weights of one priority, one for each `PLACE_SECONDS`: enough for 8.5 years. After
that time the line begins anew."""
PLACE_SECONDS = 4
OPENING = datetime(2026, 1, 1, tzinfo=UTC)


def arrival(dag_run: Any) -> datetime:
    """Return the time at which a run takes its place: when it was made, or now if it had ended.

    A run that had ended is cleared. `queued_at` is not used alone, because a clear of a running run
    changes it.
    """
    now = datetime.now(UTC)
    if dag_run.state in ("success", "failed"):
        return now
    return dag_run.created_at or dag_run.queued_at or now


def in_line(priority: int, arrived: datetime) -> int:
    """Return a weight by which waiting tasks of equal priority are first come, first served.

    Airflow 3.3.2 orders tasks of equal weight by the logical date of their runs, and runs without
    a logical date come last. So a backfill or the nightly run would overtake each waiting run that
    was triggered by hand.

    Args:
        priority: the task's own priority. A weight that this function returned before is returned
            unchanged, because Airflow calls the hook more than once.
        arrived: the time at which the task's run was queued.

    Returns:
        A weight from 2**26 to 2**31 - 1, the largest number that the column can store.
    """
    if priority >= PLACES:
        return priority
    level = min(max(priority, -LEVELS), LEVELS) + LEVELS + 1
    place = max(0, (arrived - OPENING) // timedelta(seconds=PLACE_SECONDS)) % PLACES
    return level * PLACES + PLACES - 1 - place
