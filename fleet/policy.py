"""Airflow's cluster policy: what every task must be, whoever wrote its DAG.

Airflow finds these functions through `fleet/config/airflow_local_settings.py`. `task_policy` is
called for each task when its file is parsed, by the dag-processor and by the worker that is about
to run a task of it; `task_instance_mutation_hook` when a run's tasks are made.
"""

from typing import Any

from airflow.exceptions import AirflowClusterPolicyViolation

from fleet.contract import Queue, queues

DEFAULT_POOL = "default_pool"
GPU_QUEUE = "gpu_queue"
"""The run parameter that sends a run's gpu tasks to a queue of larger GPUs."""


def task_policy(task: Any) -> None:
    """Refuse a queue that no worker serves; give what a task lacks.

    A queue that nobody serves would otherwise hang for half an hour and fail without a reason.

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
    """Give a task its queue's pool; refuse another, in which it would not wait for a GPU."""
    if not queue.pool:
        return
    if task.pool not in (DEFAULT_POOL, queue.pool):
        raise AirflowClusterPolicyViolation(
            f"{task.dag.fileloc}: task {task.task_id} names pool {task.pool!r}, but tasks of queue "
            f"{queue.name} wait in pool {queue.pool}; leave its pool out"
        )
    task.pool = queue.pool


def _limit_run(task: Any, queue: Queue) -> None:
    """Give a task the queue's longest run; refuse a longer one, whose message would come again."""
    if task.execution_timeout is None:
        task.execution_timeout = queue.execution_timeout
    elif task.execution_timeout > queue.execution_timeout:
        raise AirflowClusterPolicyViolation(
            f"{task.dag.fileloc}: task {task.task_id} may run for {task.execution_timeout}, longer "
            f"than queue {queue.name} allows ({queue.execution_timeout}); lower its "
            "execution_timeout, or raise longest_run_minutes in deploy/queues.toml"
        )


def task_instance_mutation_hook(task_instance: Any, dag_run: Any = None) -> None:
    """Send a gpu task where the run's parameter `gpu_queue` says."""
    wanted = ((dag_run.conf if dag_run else None) or {}).get(GPU_QUEUE)
    own, other = queues().get(task_instance.queue), queues().get(str(wanted))
    if own and other and own.name != other.name and own.resource == other.resource == "gpu":
        task_instance.queue = other.name
        task_instance.pool = other.pool or DEFAULT_POOL
