"""Decide how a task ends when its command, in a process or in a container, has ended."""

import json
import logging
import math
import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, AssetAlias, Context
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRescheduleException,
    AirflowRuntimeError,
    AirflowSkipException,
    AirflowTaskTerminated,
)

logger = logging.getLogger(__name__)
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
EXITS_FINAL = {2, 64, 65}
"""Exit statuses after which a retry would not help: EX_USAGE and EX_DATAERR of sysexits.h, and 2,
which most programs use for a usage error. Status 1 is not in the set, because a retry can help: a
Python exception or a failed shell command, for example after a lost connection, exits with 1."""
TRY_AGAIN_AFTER = timedelta(seconds=10)
TRY_AGAIN_FOR = timedelta(hours=1)
"""For this long after a try's first exit 75, each exit 75 reschedules the task. A later exit 75,
for example because a disk is still full, fails the try."""
_OVER = {"failed", "removed", "skipped", "success", "upstream_failed"}
FIRST_ASKED = "first asked to be tried again"
MAX_RESULT_BYTES = 48 * 1024
"""Size limit of a result. An XCom goes through the api-server into Postgres, so it should hold
addresses, not data."""


class Told:
    """Writes a command's lines to the log; keeps a final error line as the reason of the failure.

    Args:
        log: the task's logger.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self.why = ""

    def line(self, text: str) -> None:
        """Log a line; if it begins with `error:`, log it as an error and keep it as the reason.

        A later line that is not an error clears the reason.
        """
        self.why = text if text.startswith("error:") else ""
        self._write(text)

    def output(self, text: str) -> None:
        """Log a line of standard output, but keep the reason.

        A line of standard output can arrive after an error line that was written later. So such a
        line must not clear the reason.
        """
        self._write(text)

    def _write(self, text: str) -> None:
        write = self._log.error if text.startswith("error:") else self._log.info
        write(text)


def tell_why_last(operator: Any) -> None:
    """Make an operator log the reason of a failure again, after Airflow's own lines.

    The UI shows the last errors of a failed task. If the reason were not logged again, these errors
    would be a traceback of Airflow's code.
    """
    for kind in ("on_failure_callback", "on_retry_callback"):
        setattr(operator, kind, [*getattr(operator, kind), _tell_why])


def _tell_why(context: Context) -> None:
    told = getattr(context["task"], "told", None)
    reason = (told and told.why) or str(context.get("exception") or "")
    if reason:
        context["task"].log.error(reason)


def quoted(words: Sequence[str]) -> str:
    """Format a command for messages, so that it can be pasted into a shell."""
    return f"`{shlex.join(words)}`"


def raise_for(status: int, ended: str, context: Context, *, must_end: bool) -> None:
    """Raise the exception that an exit status requires; return if the status is 0.

    Args:
        status: the command's exit status; -N means that signal N ended the command.
        ended: text that says which command ended and how.
        context: the task's context.
        must_end: whether the command was told to end, by SIGTERM.

    Raises:
        AirflowTaskTerminated: the command was told to end because its task was marked failed.
        AirflowSkipException: the command was told to end because its task was marked with another
            state, timed out or was cleared.
        AirflowRescheduleException: the command was told to end because its worker stops, or it
            exited with 75 within `TRY_AGAIN_FOR`. The task does not use up a retry.
        AirflowFailException: an exit status in `EXITS_FINAL`; a retry would not help.
        AirflowException: the command ended in any other way.
    """
    if status == 0:
        return
    if must_end and (state := _state_by_now(context)) != "running":
        kind = AirflowTaskTerminated if state == "failed" else AirflowSkipException
        next_ = "is not tried again" if state in _OVER else "is started again by Airflow"
        raise kind(f"{ended}; the task's state is now {state}, so the task {next_}")
    if must_end or (status == EXIT_TRY_AGAIN and _may_try_again(context)):
        logger.info("%s; the task is rescheduled without using up a retry", ended)
        raise AirflowRescheduleException(datetime.now(UTC) + TRY_AGAIN_AFTER)
    if status in EXITS_FINAL:
        raise AirflowFailException(
            f"{ended}; fix the cause that the command's error line names; a retry would not help"
        )
    raise AirflowException(f"{ended}; see the last lines of the command's output above")


def read_result(line: str, words: Sequence[str]) -> dict[str, Any]:
    """Parse a command's result, the last line of its standard output.

    Raises:
        AirflowFailException: the line is not a JSON object, is too long for an XCom, or has a value
            that Airflow cannot store.
    """
    try:
        result = json.loads(line)
    except ValueError:
        result = None
    if not isinstance(result, dict) or len(line.encode()) > MAX_RESULT_BYTES:
        raise AirflowFailException(
            f"{quoted(words)} must print a JSON object of at most {MAX_RESULT_BYTES} bytes "
            f"as its last line, found: {line[:200]!r}; "
            "write large data to an artifact and print the artifact's address"
        )
    for key, value in _unfit(result, ""):
        raise AirflowFailException(
            f"{quoted(words)} printed a result that cannot be stored: {key} is {value[:60]}; print "
            "finite numbers, integers of at most 64 bits, and text without \\u0000 or unpaired "
            "surrogates"
        )
    return result


def _unfit(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the key and text of each value that JSON, Postgres or Airflow's client would refuse.

    Without this check, Airflow 3.3.2 would refuse the value and retry the task, and the retry would
    do all the work again (observed).
    """
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _unfit(name, f"a key in {key or 'the result'}")
            yield from _unfit(each, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _unfit(each, f"{key}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield key, str(value)
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        yield key, f"{value:.3e}" if abs(value) < 10**300 else "a larger integer"
    elif isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        yield key, ascii(value)


def alias_of(asset: Asset | None) -> list[AssetAlias]:
    """Return the outlets of a task that can make an asset.

    The outlet is an alias. With the asset itself as the outlet, Airflow would emit an event even if
    nothing new was made.
    """
    return [AssetAlias(asset.name)] if asset else []


def announce(asset: Asset | None, result: dict[str, Any], context: Context) -> None:
    """Emit the asset's event, which carries the result; no event if nothing new was made."""
    if asset and not result.get("reused"):
        context["outlet_events"][AssetAlias(asset.name)].add(asset, extra=result)


def _may_try_again(context: Context) -> bool:
    """Whether the first exit 75 of this try is less than `TRY_AGAIN_FOR` ago.

    The time of the first exit 75 is kept in the task's state store, because XComs are cleared at
    each start. A reschedule because the worker stops does not count as an exit 75. If Airflow does
    not answer, the result is True.
    """
    store, this_try, now = context["task_state_store"], context["ti"].try_number, datetime.now(UTC)
    try:
        kept = store.get(FIRST_ASKED)
        if not isinstance(kept, dict) or kept["try"] != this_try:
            kept = {"try": this_try, "at": now.isoformat()}
            store.set(FIRST_ASKED, kept)
    except AirflowRuntimeError:
        return True
    return now - datetime.fromisoformat(str(kept["at"])) < TRY_AGAIN_FOR


def _state_by_now(context: Context) -> str:
    """This task's current state in Airflow; `running` if Airflow does not answer."""
    ti = context["ti"]
    key = ti.task_id if ti.map_index is None or ti.map_index < 0 else f"{ti.task_id}_{ti.map_index}"
    try:
        states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id], task_ids=[ti.task_id])
    except AirflowRuntimeError:
        return "running"
    found = states.get(ti.run_id, {})
    return str(found[key]) if key in found else "removed"
