"""A schedule that makes up for nothing: what fell due while nobody could run it stays undone.

Airflow's own timetables make the newest missed run at once: after a stop of the stack, after a
pause of the DAG, and where a backfill's run is the DAG's newest (3.3.2).
"""

import os
from datetime import timedelta
from typing import Any

from airflow.listeners import hookimpl
from airflow.sdk import timezone
from airflow.timetables.base import DagRunInfo, DataInterval, TimeRestriction
from airflow.timetables.trigger import CronTriggerTimetable

GRACE = timedelta(minutes=10)
"""A run is late by so much at most. The dag-processor asks anew each half minute, so without it a
scheduler that is a second late would find that its run had been given up."""


class UpcomingCronTimetable(CronTriggerTimetable):
    """Cron's times, of which the next is never in the past by more than `GRACE`."""

    def next_dagrun_info(
        self,
        *,
        last_automated_data_interval: DataInterval | None,
        restriction: TimeRestriction,
    ) -> DagRunInfo | None:
        """Say when the next run is; a backfill, and a DAG that catches up, get all their times."""
        if not restriction.catchup:
            earliest = timezone.coerce_datetime(timezone.utcnow() - GRACE)
            if restriction.earliest is not None:
                earliest = max(earliest, restriction.earliest)
            restriction = restriction._replace(earliest=earliest)
        return super().next_dagrun_info(
            last_automated_data_interval=last_automated_data_interval, restriction=restriction
        )


def daily() -> UpcomingCronTimetable | None:
    """Midnight UTC, on a stack that was started with DAILY=1; else on demand alone."""
    if os.environ.get("MUSIC_GENRE_DAILY") != "1":
        return None
    return UpcomingCronTimetable("0 0 * * *", timezone="UTC")


@hookimpl
def on_starting(component: Any) -> None:
    """Give up what fell due while the stack was down: the scheduler would run it first of all.

    Called by Airflow before a part of the control plane starts its loop, and in each task's
    process, which has no database.
    """
    if hasattr(component, "job_type"):
        give_up_what_was_missed()


def give_up_what_was_missed() -> None:
    """Forget the next run of each DAG that is overdue.

    The next parse of its file, within seconds, sets it by the DAG's own timetable, whichever it is.
    """
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session
    from sqlalchemy import update

    overdue = DagModel.next_dagrun_create_after < timezone.utcnow() - GRACE
    unknown = {"next_dagrun": None, "next_dagrun_create_after": None}
    with create_session() as session:
        session.execute(update(DagModel).where(overdue).values(unknown))
