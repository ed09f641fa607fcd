"""Where Airflow looks for plugins; what this one brings is in `fleet/timetable.py`."""

from airflow.plugins_manager import AirflowPlugin

from fleet import timetable


class MusicGenrePlugin(AirflowPlugin):
    """The timetable of the daily DAGs, and what keeps to it at a start."""

    name = "music_genre"
    timetables = [timetable.UpcomingCronTimetable]  # noqa: RUF012 (as Airflow declares it)
    listeners = [timetable]  # noqa: RUF012
