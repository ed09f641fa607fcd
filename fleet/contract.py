"""The queue contract of `deploy/queues.toml` and every number derived from it.

This module uses only the standard library, because the deploy environment, every worker and every
process that parses DAGs import it.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

CONTRACT_PATH = Path(__file__).resolve().parent.parent / "deploy" / "queues.toml"
_RESOURCES = ("cpu", "gpu")
_COUNTED = ("cores", "gpus")

GRACE_SECONDS = 60
"""Time between SIGTERM and SIGKILL for a worker. The worker stops its tasks within seconds of
SIGTERM."""
HEARTBEAT_SECONDS = 2
"""Shortest interval between two heartbeats of a task. A supervisor can take one interval to
notice that its task has ended; until then the slot stays busy (measured)."""
OUTAGE_SECONDS = 900
"""A running task survives an api-server outage of this length, if its worker reaches Redis."""
MARGIN_SECONDS = 3600
"""Time between the end of the longest possible task and the redelivery of its message."""
QUEUED_SECONDS = 180
"""How long a task may be queued in Redis before the scheduler sends it again. A task waits for a
free slot in its pool, so a task that is queued for longer usually has lost its message."""
CHECK_SECONDS = 60
"""How often the scheduler looks for such tasks."""
NEVER_GIVE_UP = 1_000_000
"""How often a task may be sent again. By default Airflow fails it after two times."""
LEVELS = 15
"""The highest priority of a task; its negative is the lowest."""
VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
"""The environment variable that names the GPU that a task computes on."""
LEASE_KEY = "fleet.lease."
"""Beginning of the names of Redis keys that exist as long as a worker has a task; the name ends
with the id of the task's message."""
LEASE_SECONDS = 30
"""Length of a lease. If a worker does not renew its leases for this long, other workers put its
messages back into their queues, and the executor looks whether its tasks are lost."""
STACK_LABEL = "music-genre.stack"
"""Label on a task's container. Its value is the Compose project of the task's worker."""
GPU_LOCKS = "/var/tmp/music-genre-gpus"  # noqa: S108
"""The default folder of `music-genre`'s GPU locks, on the host and in every container."""
FINISH_SECONDS = 20.0
"""Time that a stopping worker gives a task to finish, if the task is not rescheduled on SIGTERM.
The time is shorter than a lease, because a stopping worker renews no lease. It is also shorter than
the stop time-out of both stacks."""


class ContractError(ValueError):
    """The contract is missing or invalid."""


@dataclass(frozen=True)
class Queue:
    """One queue and how a worker serves it."""

    name: str
    """The value of a task's `queue=`; also the name of the Redis list."""
    purpose: str
    """The work of the queue's tasks, in a few words."""
    resource: str
    """`cpu` or `gpu`. With `gpu` the tasks compute on a GPU, or on the CPU if there is no GPU."""
    slots: int | str
    """Tasks a worker runs at a time: a number, `cores` (one per core) or `gpus` (one per GPU)."""
    memory_gib: float
    """Memory of one slot; a worker has only as many slots as fit into its memory."""
    longest_run_minutes: int
    """Time limit of a task; a task that runs longer is stopped."""
    pool: str
    """The Airflow pool in which the queue's tasks wait for a free slot."""
    priority: int
    """Priority weight of the queue's tasks, unless a task sets its own weight."""
    larger: str = ""
    """The queue with larger GPUs, for tasks too large for this queue's GPUs; empty for none."""

    @property
    def execution_timeout(self) -> timedelta:
        """The longest time that a task may run."""
        return timedelta(minutes=self.longest_run_minutes)

    def n_slots(self, *, n_cores: int, n_gpus: int, memory_gib: float) -> int:
        """Return how many tasks a worker with these cores, GPUs and memory runs at a time.

        A worker of a gpu queue runs at most one task per GPU, even if the contract allows more,
        because each task has its own GPU. Without a GPU the worker runs one task.
        """
        wanted = {"cores": n_cores, "gpus": n_gpus}.get(str(self.slots), self.slots)
        fitting = int(memory_gib / self.memory_gib)
        if self.resource == "gpu":
            fitting = min(fitting, n_gpus)
        return max(1, min(int(wanted), fitting))


def read_contract(path: Path = CONTRACT_PATH) -> Mapping[str, Queue]:
    """Read the contract: queue name → queue, in the file's order.

    Raises:
        ContractError: the file is missing, is not valid TOML or names no queue; or a queue has an
            unknown key, a missing key or an invalid value.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text).get("queues", {})
    except FileNotFoundError as error:
        raise ContractError(f"queue contract {path} is missing; restore it from Git") from error
    except tomllib.TOMLDecodeError as error:
        raise ContractError(
            f"queue contract {path} is not valid TOML: {error}; correct the file's syntax"
        ) from error
    if not isinstance(tables, Mapping) or not tables:
        raise ContractError(f"queue contract {path} defines no queue; add a [queues.NAME] table")
    contract = {name: _queue(name, table, path) for name, table in tables.items()}
    for name in contract:
        _check_name(name, text, path)
    for queue in contract.values():
        _check_larger(queue, contract, path)
    return contract


@cache
def queues() -> Mapping[str, Queue]:
    """The queues of this checkout's contract, read once per process."""
    return read_contract()


def pools(contract: Mapping[str, Queue]) -> Mapping[str, list[Queue]]:
    """Return name of a pool → the queues whose tasks share the pool's slots."""
    found: dict[str, list[Queue]] = {}
    for queue in contract.values():
        found.setdefault(queue.pool, []).append(queue)
    return found


def settings(contract: Mapping[str, Queue]) -> Mapping[str, str]:
    """Airflow settings that follow from the contract: variable name → value.

    - A message is redelivered after `visibility_timeout`, which is longer than any task can run.
    - A task is sent to Redis only when its pool has a free slot. If no worker has started it after
      `task_queued_timeout`, the scheduler sends it again, as often as necessary and without using
      up a try. The token in the message of a task is valid for the same time, so a worker ignores
      the first message if it still comes.
    - A task survives an api-server outage of `OUTAGE_SECONDS`. Airflow does not declare the task
      dead, even if it misses all heartbeats during the outage. The task's token does not expire
      either: Airflow renews a token when a fifth of its lifetime is left, and that fifth is longer
      than the outage.
    """
    longest = max(queue.longest_run_minutes for queue in contract.values()) * 60
    failures = math.ceil(OUTAGE_SECONDS / HEARTBEAT_SECONDS)
    numbers = {
        "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": longest + MARGIN_SECONDS,
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": QUEUED_SECONDS,
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": CHECK_SECONDS,
        "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": NEVER_GIVE_UP,
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": HEARTBEAT_SECONDS,
        "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": failures,
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": OUTAGE_SECONDS + GRACE_SECONDS,
        "AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME": 5 * (OUTAGE_SECONDS + GRACE_SECONDS),
    }
    return {name: str(number) for name, number in numbers.items()}


def queues_env() -> str:
    """The text of `deploy/queues.env`, which both stacks read."""
    lines = [f"{name}={value}\n" for name, value in settings(queues()).items()]
    return (
        "# Generated from queues.toml by `make docs`; fleet/contract.py explains the values.\n"
        + "".join(lines)
    )


def _check_name(name: str, text: str, path: Path) -> None:
    """Check that `deploy/redis-users.sh`, which reads the contract with sed, can find the queue."""
    if not re.fullmatch("[a-z][a-z0-9-]*", name):
        raise ContractError(
            f"queue {name!r} in {path} has an invalid name; use a-z, 0-9 and -, and begin "
            "with a letter"
        )
    if f"[queues.{name}]" not in text.splitlines():
        raise ContractError(
            f"queue {name!r} in {path}: write the table's header on its own line as [queues.{name}]"
        )


def _queue(name: str, table: Any, path: Path) -> Queue:
    """Check one table and build a queue from it."""
    where = f"queue {name!r} in {path}"
    known = {field.name for field in fields(Queue)} - {"name"}
    found = set(table) if isinstance(table, Mapping) else {type(table).__name__}
    if missing := known - {"larger"} - found:
        raise ContractError(
            f"{where} lacks the keys {sorted(missing)}, found {sorted(found)}; add the missing keys"
        )
    if unknown := found - known:
        raise ContractError(
            f"{where} has the unknown keys {sorted(unknown)}; the known keys are {sorted(known)}"
        )
    _check_texts(table, where)
    _check_numbers(table, where)
    return Queue(name=name, **table)


def _check_texts(table: Mapping[str, Any], where: str) -> None:
    for key in ("purpose", "pool", "larger"):
        if not isinstance(table.get(key, ""), str):
            raise ContractError(f"{key} of {where} is {table[key]!r}; write a string")
    if not table["pool"]:
        raise ContractError(f"pool of {where} is empty; write the name of an Airflow pool")
    if table["resource"] not in _RESOURCES:
        raise ContractError(f"resource of {where} is {table['resource']!r}; write 'cpu' or 'gpu'")


def _check_numbers(table: Mapping[str, Any], where: str) -> None:
    slots = table["slots"]
    if slots not in _COUNTED and not _is_whole(slots):
        raise ContractError(
            f"slots of {where} is {slots!r}; write a whole number above 0, 'cores' or 'gpus'"
        )
    if slots == "gpus" and table["resource"] != "gpu":
        raise ContractError(
            f"slots of {where} is 'gpus', but the queue's resource is not 'gpu'; write 'cores' or "
            "a number"
        )
    minutes, priority = table["longest_run_minutes"], table["priority"]
    if not _is_whole(minutes):
        raise ContractError(
            f"longest_run_minutes of {where} is {minutes!r}; write a whole number above 0"
        )
    if type(priority) is not int or not -LEVELS <= priority <= LEVELS:
        raise ContractError(
            f"priority of {where} is {priority!r}; write a whole number from -{LEVELS} to {LEVELS}"
        )
    memory = table["memory_gib"]
    if isinstance(memory, bool) or not isinstance(memory, int | float) or not 0 < memory < math.inf:
        raise ContractError(f"memory_gib of {where} is {memory!r}; write a number above 0")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_larger(queue: Queue, contract: Mapping[str, Queue], path: Path) -> None:
    """Check that the key `larger` of a queue, if set, names a gpu queue and makes no cycle."""
    seen = [queue.name]
    while queue.larger:
        if queue.larger not in contract or contract[queue.larger].resource != "gpu":
            raise ContractError(
                f"the key larger of queue {queue.name!r} in {path} is {queue.larger!r}, "
                "which is not a gpu queue; write the name of a gpu queue"
            )
        if queue.larger in seen:
            raise ContractError(
                f"the key larger of queue {queue.name!r} in {path} makes a cycle with queue "
                f"{queue.larger!r}; name only queues with larger GPUs"
            )
        seen.append(queue.larger)
        queue = contract[queue.larger]
