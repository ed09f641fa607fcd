"""The queue contract of `deploy/queues.toml`, read once and handed to all who know a queue.

Standard library only: the deploy environment, every worker and every DAG parse import it.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CONTRACT_PATH = Path(__file__).resolve().parent.parent / "deploy" / "queues.toml"
_KEYS = {"purpose", "resource", "slots"}
_RESOURCES = ("cpu", "gpu")


class ContractError(ValueError):
    """The contract is missing or says something that nobody could follow."""


@dataclass(frozen=True)
class Queue:
    """One queue and how a worker serves it."""

    name: str
    """What tasks write in `queue=`; also the Redis list's name."""
    purpose: str
    """What its tasks do."""
    resource: str
    """`cpu`, or `gpu`: its tasks compute on a GPU where there is one."""
    slots: int | None
    """Tasks a worker runs at a time; None: as many as its machine has cores."""

    def n_slots(self, n_cores: int) -> int:
        """Count the tasks that a worker on a machine with these cores runs at a time."""
        return self.slots or n_cores


def read_contract(path: Path = CONTRACT_PATH) -> Mapping[str, Queue]:
    """Read the contract: queue name → queue, in the file's order.

    Raises:
        ContractError: the file is missing, is no TOML, names no queue, or a queue has an unknown
            key, lacks one, or has a value that it cannot have.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("queues", {})
    except FileNotFoundError as error:
        raise ContractError(f"queue contract {path} is missing; restore it from Git") from error
    except tomllib.TOMLDecodeError as error:
        raise ContractError(f"queue contract {path} is not valid TOML: {error}; mend it") from error
    if not tables:
        raise ContractError(f"queue contract {path} names no queue; add a [queues.NAME] table")
    return {name: _queue(name, table, path) for name, table in tables.items()}


@cache
def queues() -> Mapping[str, Queue]:
    """The queues of this checkout's contract, read once a process."""
    return read_contract()


def _queue(name: str, table: Mapping[str, object], path: Path) -> Queue:
    if not isinstance(table, Mapping) or set(table) != _KEYS:
        found = sorted(table) if isinstance(table, Mapping) else type(table).__name__
        raise ContractError(
            f"queue {name!r} in {path} must have exactly {sorted(_KEYS)}, found {found}; mend it"
        )
    slots, resource = table["slots"], table["resource"]
    if resource not in _RESOURCES:
        raise ContractError(
            f"resource of queue {name!r} in {path} is {resource!r}; write one of {_RESOURCES}"
        )
    if isinstance(slots, int) and not isinstance(slots, bool) and slots > 0:
        return Queue(name, str(table["purpose"]), str(resource), slots)
    if slots == "cores":
        return Queue(name, str(table["purpose"]), str(resource), None)
    raise ContractError(
        f"slots of queue {name!r} in {path} is {slots!r}; write a number above 0 or 'cores'"
    )
