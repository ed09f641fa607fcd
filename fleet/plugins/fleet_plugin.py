"""Where Airflow looks for plugins; what this one brings is in `fleet/timetable.py`.

Airflow loads the file as a module of its bare name, so it must not be called like a package.
"""

from airflow.plugins_manager import AirflowPlugin

from fleet import timetable


class MusicGenrePlugin(AirflowPlugin):
    """The timetable of the daily DAGs, and what keeps to it at a start."""

    name = "music_genre"
    timetables = [timetable.UpcomingCronTimetable]  # noqa: RUF012 (as Airflow declares it)
    listeners = [timetable]  # noqa: RUF012
