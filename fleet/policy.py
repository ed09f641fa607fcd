"""Airflow's cluster policy: rules for every task, whoever wrote its DAG.

Airflow finds these functions through `fleet/config/airflow_local_settings.py`. It calls
`task_policy` for each task when the DAG file is parsed: by the dag-processor, and by a worker that
is about to run one of its tasks. It calls `task_instance_mutation_hook` when a run's task instances
are created.
"""

import logging
from collections.abc import Mapping
from typing import Any

from airflow.exceptions import AirflowClusterPolicyViolation
from airflow.sdk.exceptions import AirflowTaskTimeout

from fleet.contract import Queue, queues

DEFAULT_POOL = "default_pool"
GPU_QUEUE = "gpu_queue"
"""The run parameter that sends a run's gpu tasks to a queue of larger GPUs."""


def task_policy(task: Any) -> None:
    """Refuse a queue that no worker serves; fill in what a task leaves out.

    A task in such a queue would otherwise wait until Airflow's queued time-out and then fail
    without a reason.

    Raises:
        AirflowClusterPolicyViolation: becomes the file's import error, in the UI and the API.
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
    """Set a task's pool to its queue's; refuse another pool, where it would not wait for a GPU."""
    if not queue.pool:
        return
    if task.pool not in (DEFAULT_POOL, queue.pool):
        raise AirflowClusterPolicyViolation(
            f"{task.dag.fileloc}: task {task.task_id} names pool {task.pool!r}, but tasks of queue "
            f"{queue.name} wait in pool {queue.pool}; remove its pool argument"
        )
    task.pool = queue.pool


def _limit_run(task: Any, queue: Queue) -> None:
    """Give a task its queue's time limit; refuse a longer one: its message would be redelivered."""
    if task.execution_timeout is None:
        task.execution_timeout = queue.execution_timeout
        for name in ("on_failure_callback", "on_retry_callback"):
            given = getattr(task, name) or []  # one function, or several
            setattr(task, name, [*([given] if callable(given) else given), tell_whose_limit])
    elif task.execution_timeout > queue.execution_timeout:
        raise AirflowClusterPolicyViolation(
            f"{task.dag.fileloc}: task {task.task_id} may run for {task.execution_timeout}, longer "
            f"than queue {queue.name} allows ({queue.execution_timeout}); lower its "
            "execution_timeout, or raise longest_run_minutes in deploy/queues.toml"
        )


def tell_whose_limit(context: Mapping[str, Any]) -> None:
    """Log that a task hit its queue's time limit; Airflow itself logs only `Timeout, PID: 248`."""
    if isinstance(context.get("exception"), AirflowTaskTimeout):
        task = context["task"]
        logging.getLogger(__name__).error(
            "error: stopped after %s, the time limit of queue %s; raise longest_run_minutes in "
            "deploy/queues.toml, or have the task wait with mode='reschedule'",
            task.execution_timeout,
            task.queue,
        )


def task_instance_mutation_hook(task_instance: Any, dag_run: Any = None) -> None:
    """Send a gpu task to the queue in the run parameter `gpu_queue`."""
    wanted = ((dag_run.conf if dag_run else None) or {}).get(GPU_QUEUE)
    own, other = queues().get(task_instance.queue), queues().get(str(wanted))
    if own and other and own.name != other.name and own.resource == other.resource == "gpu":
        task_instance.queue = other.name
        task_instance.pool = other.pool or DEFAULT_POOL
