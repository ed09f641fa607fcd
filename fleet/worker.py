"""Start a Celery worker for one queue of the contract, sized by what its machine has."""

import os
import sys
from pathlib import Path

from fleet.contract import ContractError, Queue, queues
from fleet.gpus import Gpu, list_gpus


def run_worker(queue_name: str) -> None:
    """Replace this process by the Airflow Celery worker that serves the queue.

    Raises:
        ContractError: the contract has no such queue.
    """
    if queue_name not in queues():
        raise ContractError(f"queue {queue_name!r} is not in the contract; known: {list(queues())}")
    queue = queues()[queue_name]
    gpus = list_gpus() if queue.resource == "gpu" else []
    print(describe(queue, gpus), file=sys.stderr, flush=True)
    command = worker_command(queue, len(os.sched_getaffinity(0)))
    os.execv(command[0], command)


def worker_command(queue: Queue, n_cores: int) -> list[str]:
    """Build the command line of the queue's worker on a machine with these cores.

    Task logs are read from the shared log folder, so the worker serves none itself.
    """
    airflow = str(Path(sys.executable).with_name("airflow"))
    flags = {
        "--queues": queue.name,
        "--concurrency": str(queue.n_slots(n_cores)),
        "--celery-hostname": f"{queue.name}@%h",
    }
    pairs = [word for pair in flags.items() for word in pair]
    return [airflow, "celery", "worker", *pairs, "--skip-serve-logs", "--without-mingle"]


def describe(queue: Queue, gpus: list[Gpu]) -> str:
    """Say in one line what the worker serves and on what it computes."""
    if queue.resource != "gpu":
        device = "the CPU"
    elif gpus:
        device = ", ".join(f"{gpu.name} ({gpu.uuid})" for gpu in gpus)
    else:
        device = "the CPU, because no NVIDIA GPU is visible: training is slow"
    return f"worker of queue {queue.name} ({queue.purpose}) computes on {device}"
