"""A schedule without catch-up: a run that was missed is dropped.

Airflow's own timetables start the newest missed run at once. They do so after a stop of the stack,
after a pause of the DAG, and when the DAG's newest run belongs to a backfill (3.3.2).
"""

import os
from datetime import timedelta
from typing import Any

from airflow.listeners import hookimpl
from airflow.sdk import timezone
from airflow.timetables.base import DagRunInfo, DataInterval, TimeRestriction
from airflow.timetables.trigger import CronTriggerTimetable

GRACE = timedelta(minutes=10)
"""A run is dropped if it is late by more than this time. The dag-processor recomputes the next run
every half minute. With no tolerance it would drop a run if the scheduler were a second late."""


class UpcomingCronTimetable(CronTriggerTimetable):
    """A cron timetable whose next run is never more than `GRACE` in the past."""

    def next_dagrun_info(
        self,
        *,
        last_automated_data_interval: DataInterval | None,
        restriction: TimeRestriction,
    ) -> DagRunInfo | None:
        """Return the next run; drop past runs, except for a backfill or a DAG with catch-up."""
        if not restriction.catchup:
            earliest = timezone.coerce_datetime(timezone.utcnow() - GRACE)
            if restriction.earliest is not None:
                earliest = max(earliest, restriction.earliest)
            restriction = restriction._replace(earliest=earliest)
        return super().next_dagrun_info(
            last_automated_data_interval=last_automated_data_interval, restriction=restriction
        )


def daily() -> UpcomingCronTimetable | None:
    """Return a schedule for midnight UTC if the stack was started with DAILY=1, otherwise None."""
    if os.environ.get("MUSIC_GENRE_DAILY") != "1":
        return None
    return UpcomingCronTimetable("0 0 * * *", timezone="UTC")


@hookimpl
def on_starting(component: Any) -> None:
    """Drop runs that fell due while the stack was down, before the scheduler can start them.

    Airflow calls this hook before a component of the control plane starts its loop. Airflow also
    calls the hook in each task's process. There the hook does nothing, because a task's process has
    no access to the database.
    """
    if hasattr(component, "job_type"):
        give_up_what_was_missed()


def give_up_what_was_missed() -> None:
    """Clear the next run of each DAG whose next run is overdue by more than `GRACE`.

    The next parse of the DAG's file, within seconds, computes the next run again with the DAG's own
    timetable.
    """
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session
    from sqlalchemy import update

    overdue = DagModel.next_dagrun_create_after < timezone.utcnow() - GRACE
    unknown = {"next_dagrun": None, "next_dagrun_create_after": None}
    with create_session() as session:
        session.execute(update(DagModel).where(overdue).values(unknown))
