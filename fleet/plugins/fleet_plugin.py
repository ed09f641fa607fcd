"""The plugin file that Airflow loads; the plugin's code is in `fleet/timetable.py`.

Airflow loads this file as a top-level module, so the file must not have the name of a package.
"""

from airflow.plugins_manager import AirflowPlugin

from fleet import timetable


class MusicGenrePlugin(AirflowPlugin):
    """The timetable of the daily DAGs, and the listener that drops missed runs at a restart."""

    name = "music_genre"
    timetables = [timetable.UpcomingCronTimetable]  # noqa: RUF012 (as Airflow declares it)
    listeners = [timetable]  # noqa: RUF012
