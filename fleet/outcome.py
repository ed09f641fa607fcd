"""What the end of a command means for the task that ran it, in a process or in a container."""

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, AssetAlias, Context
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRescheduleException,
)

logger = logging.getLogger(__name__)
EXIT_BAD_INPUT, EXIT_USAGE, EXIT_TRY_AGAIN = 1, 2, 75  # 75 is EX_TEMPFAIL of sysexits.h
TRY_AGAIN_AFTER = timedelta(seconds=10)
TRY_AGAIN_FOR = timedelta(hours=1)
"""A command that asks to be tried again for longer, on a full disk say, fails instead."""
MAX_RESULT_BYTES = 48 * 1024
"""XComs go through the api-server into Postgres; addresses belong there, not data."""


def quoted(words: Sequence[str]) -> str:
    """Write a command as messages name it."""
    return f"`{' '.join(words)}`"


def raise_for(status: int, ended: str, context: Context, *, must_end: bool) -> None:
    """Raise what an exit status asks for; nothing for 0.

    Args:
        status: of the command; negative is the signal that ended it.
        ended: says which command ended how.
        context: the task's.
        must_end: whether it was told to end, by SIGTERM: then its task goes on later.

    Raises:
        AirflowRescheduleException: told to end, or exit 75 within `TRY_AGAIN_FOR`; spends no retry.
        AirflowFailException: exit 1 or 2; no retry would help.
        AirflowException: any other end.
    """
    if status == 0:
        return
    if must_end or (status == EXIT_TRY_AGAIN and _may_try_again(context)):
        logger.info("%s: to be tried again, which spends no retry", ended)
        raise AirflowRescheduleException(datetime.now(UTC) + TRY_AGAIN_AFTER)
    if status in (EXIT_BAD_INPUT, EXIT_USAGE):
        raise AirflowFailException(f"{ended}: mend what the last lines name; a retry would not")
    raise AirflowException(f"{ended}; see the last lines of its output above")


def read_result(line: str, words: Sequence[str]) -> dict[str, Any]:
    """Read the last line that a command printed, its result.

    Raises:
        AirflowFailException: it is no JSON object, or too long for an XCom.
    """
    try:
        result = json.loads(line)
    except ValueError:
        result = None
    if not isinstance(result, dict) or len(line.encode()) > MAX_RESULT_BYTES:
        raise AirflowFailException(
            f"{quoted(words)} must print a JSON object of at most {MAX_RESULT_BYTES} bytes "
            f"as its last line, found: {line[:200]!r}; "
            "large data belong in an artifact, their address in the result"
        )
    return result


def alias_of(asset: Asset | None) -> list[AssetAlias]:
    """The outlets of a task that may make an asset.

    An alias, for an asset among the outlets would have an event whatever the result is.
    """
    return [AssetAlias(asset.name)] if asset else []


def announce(asset: Asset | None, result: dict[str, Any], context: Context) -> None:
    """Make the asset's event, which carries the result; none where nothing new was made."""
    if asset and not result.get("reused"):
        context["outlet_events"][AssetAlias(asset.name)].add(asset, extra=result)


def _may_try_again(context: Context) -> bool:
    """Whether this try has been rescheduled for less than `TRY_AGAIN_FOR`."""
    first = context["ti"].get_first_reschedule_date(context)
    return first is None or datetime.now(UTC) - first < TRY_AGAIN_FOR
