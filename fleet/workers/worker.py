"""Start the Celery worker of one queue; contract and machine decide its number of slots."""

import contextlib
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from fleet.contract import ContractError, Queue, queues
from fleet.workers.gpus import GPUS_VARIABLE, SLOTS_VARIABLE, Gpu, list_gpus

CGROUP = Path("/sys/fs/cgroup")
ALONE = ("--skip-serve-logs", "--without-mingle", "--without-gossip")
"""Options that switch off the log server and contact between workers. Workers need no contact, and
gossip would let one worker make another send tasks."""
THREADS_VARIABLE = "OMP_NUM_THREADS"
"""The environment variable for the number of threads of a task: a slot's share of the cores. With
more threads than cores, threads spin while they wait for each other: four trainings on two cores
took 480 s with two threads each, 54 s with one thread each (measured)."""
EXECUTION_API = "AIRFLOW__CORE__EXECUTION_API_SERVER_URL"
LARGER_VARIABLE = "MUSIC_GENRE_LARGER_GPU"
"""The environment variable with the remedy that `music-genre` names if a GPU is too small."""


def run_worker(queue_name: str) -> None:
    """Replace this process with the Airflow Celery worker that serves the queue.

    Raises:
        ContractError: the contract has no such queue.
    """
    if queue_name not in queues():
        raise ContractError(
            f"queue {queue_name!r} is not in deploy/queues.toml; use one of {', '.join(queues())}"
        )
    queue = queues()[queue_name]
    gpus = list_gpus() if queue.resource == "gpu" else []
    n_cores = usable_cores()
    n_slots = queue.n_slots(n_cores=n_cores, n_gpus=len(gpus), memory_gib=memory_gib())
    print(describe(queue, gpus, n_slots), file=sys.stderr, flush=True)
    os.environ[SLOTS_VARIABLE] = str(n_slots)
    os.environ[GPUS_VARIABLE] = ",".join(gpu.uuid for gpu in gpus[:n_slots])
    if queue.resource == "gpu":
        os.environ.setdefault(THREADS_VARIABLE, str(max(1, n_cores // n_slots)))
    if EXECUTION_API in os.environ:
        base = os.environ.get("AIRFLOW__API__BASE_URL", "")
        os.environ[EXECUTION_API] = below(base, os.environ[EXECUTION_API])
    if queue.larger:
        os.environ[LARGER_VARIABLE] = f"the run parameter gpu_queue={queue.larger}"
    command = worker_command(queue, n_slots)
    os.execv(command[0], command)


def below(base: str, address: str) -> str:
    """Put an address's path below the path of Airflow's base URL, where Airflow serves its APIs."""
    path, parts = urlsplit(base).path.rstrip("/"), urlsplit(address)
    is_below = parts.path.startswith(f"{path}/execution")
    return address if is_below else parts._replace(path=path + parts.path).geturl()


def worker_command(queue: Queue, n_slots: int) -> list[str]:
    """Build the command line of the queue's worker.

    Task logs are read from the shared log folder, so the worker itself serves no logs.
    """
    airflow = str(Path(sys.executable).with_name("airflow"))
    flags = {
        "--queues": queue.name,
        "--concurrency": str(n_slots),
        "--celery-hostname": f"{queue.name}@%h",
    }
    pairs = [word for pair in flags.items() for word in pair]
    return [airflow, "celery", "worker", *pairs, *ALONE]


def usable_cores() -> int:
    """Count this process's cores, up to the container's CPU quota (cgroup v2 or v1)."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # the file is missing or says "max"
        quota, period = map(int, (CGROUP / "cpu.max").read_text().split())
        cores = min(cores, quota // period)
    with contextlib.suppress(OSError):
        quota, period = (
            int((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
        cores = min(cores, quota // period) if quota > 0 else cores
    return max(1, cores)


def memory_gib() -> float:
    """Return the machine's memory, or the container's limit if it is lower (cgroup v2 or v1)."""
    total = psutil.virtual_memory().total
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # the file is missing or says "max"
            total = min(total, int((CGROUP / limit).read_text()))
    return float(total / 2**30)


def describe(queue: Queue, gpus: list[Gpu], n_slots: int) -> str:
    """Describe a worker in one line: its queue, its devices and the number of tasks at a time."""
    if queue.resource != "gpu":
        device = "the CPU"
    elif gpus:
        device = ", ".join(f"{gpu.name} ({gpu.uuid})" for gpu in gpus[:n_slots])
        if n_slots < len(gpus):
            n_idle = len(gpus) - n_slots
            device += f" ({n_idle} more GPUs are not used: too few slots or too little memory)"
    else:
        device = "the CPU, because no NVIDIA GPU is visible; training will be slow"
    return (
        f"worker of queue {queue.name} ({queue.purpose}) computes on {device}; "
        f"tasks at a time: {n_slots}"
    )
