"""Airflow's cluster policy: rules for every task of every DAG.

Airflow finds these functions through `fleet/config/airflow_local_settings.py`. Airflow calls
`task_policy` for each task when a DAG file is parsed: in the dag-processor, and in a worker that is
about to run a task of that file. Airflow calls `task_instance_mutation_hook` when a run's task
instances are created.
"""

import logging
from collections.abc import Mapping
from typing import Any

from airflow.exceptions import AirflowClusterPolicyViolation
from airflow.sdk.exceptions import AirflowTaskTimeout

from fleet.contract import Queue, queues

DEFAULT_POOL = "default_pool"
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
    _limit_run(task, queue)


def _take_pool(task: Any, queue: Queue) -> None:
    """Put a task into its queue's pool; refuse any other pool.

    In another pool the task would not wait for a free GPU.
    """
    if not queue.pool:
        return
    if task.pool not in (DEFAULT_POOL, queue.pool):
        raise AirflowClusterPolicyViolation(
            f"{task.dag.fileloc}: task {task.task_id} names pool {task.pool!r}, but tasks of queue "
            f"{queue.name} wait in pool {queue.pool}; remove the task's pool argument"
        )
    task.pool = queue.pool


def _limit_run(task: Any, queue: Queue) -> None:
    """Set the queue's time limit if the task has none; refuse a limit longer than the queue's.

    With a longer limit, the task's message could be redelivered while the task still runs.
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


def task_instance_mutation_hook(task_instance: Any, dag_run: Any = None) -> None:
    """Send a gpu task to the queue that the run parameter `gpu_queue` names."""
    wanted = ((dag_run.conf if dag_run else None) or {}).get(GPU_QUEUE)
    own, other = queues().get(task_instance.queue), queues().get(str(wanted))
    if own and other and own.name != other.name and own.resource == other.resource == "gpu":
        task_instance.queue = other.name
        task_instance.pool = other.pool or DEFAULT_POOL
