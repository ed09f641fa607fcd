"""The daily schedule: a run missed by more than `GRACE` is skipped, except in a backfill."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pendulum
import pytest
from airflow.sdk import timezone
from airflow.timetables import trigger
from airflow.timetables.base import DataInterval, TimeRestriction

from fleet.timetable import GRACE, UpcomingCronTimetable

REPOSITORY = Path(__file__).resolve().parents[2]
TODAY = pendulum.datetime(2026, 11, 27)
DAILY = UpcomingCronTimetable("0 0 * * *", timezone="UTC")


def set_clock(monkeypatch, now) -> None:
    for module in (timezone, trigger):
        monkeypatch.setattr(module, "utcnow", lambda: now)


def next_run(monkeypatch, *, now, last=None, earliest=None, catchup=False, latest=None):
    set_clock(monkeypatch, now)
    interval = last and DataInterval.exact(last)
    restriction = TimeRestriction(earliest, latest, catchup)
    found = DAILY.next_dagrun_info(last_automated_data_interval=interval, restriction=restriction)
    return found and found.run_after


@pytest.mark.parametrize("last", [None, TODAY.subtract(days=3), TODAY])
def test_at_eleven_the_next_run_is_tomorrows(monkeypatch, last):
    assert next_run(monkeypatch, now=TODAY.add(hours=11), last=last) == TODAY.add(days=1)


@pytest.mark.parametrize("last", [None, TODAY.subtract(days=1), TODAY.subtract(days=9)])
def test_a_run_that_is_seconds_late_is_not_given_up(monkeypatch, last):
    assert next_run(monkeypatch, now=TODAY.add(seconds=40), last=last) == TODAY
    assert next_run(monkeypatch, now=TODAY + GRACE, last=last) == TODAY
    late = TODAY + GRACE + timedelta(seconds=1)
    assert next_run(monkeypatch, now=late, last=last) == TODAY.add(days=1)


def test_of_several_times_just_missed_the_newest_is_made(monkeypatch):
    often = UpcomingCronTimetable("*/5 * * * *", timezone="UTC")
    now = TODAY.add(hours=11, minutes=7)
    hour_ago = DataInterval.exact(now.subtract(hours=1))
    set_clock(monkeypatch, now)
    for last in (None, hour_ago):
        due = often.next_dagrun_info(
            last_automated_data_interval=last, restriction=TimeRestriction(None, None, False)
        )
        assert due.run_after == TODAY.add(hours=11, minutes=5)


def test_a_run_that_was_made_is_not_made_again(monkeypatch):
    assert next_run(monkeypatch, now=TODAY.add(seconds=40), last=TODAY) == TODAY.add(days=1)


def test_the_start_and_the_end_of_a_dag_hold(monkeypatch):
    now, start = TODAY.add(hours=11), TODAY.add(days=5)
    assert next_run(monkeypatch, now=now, earliest=start) == start
    assert next_run(monkeypatch, now=now, earliest=TODAY.subtract(days=9)) == TODAY.add(days=1)
    assert next_run(monkeypatch, now=now, latest=TODAY.add(hours=20)) is None


def test_a_backfill_gets_every_day(monkeypatch):
    first = TODAY.subtract(days=7)
    seen = [first]
    for _ in range(2):
        seen.append(
            next_run(
                monkeypatch, now=TODAY.add(hours=11), last=seen[-1], earliest=first, catchup=True
            )
        )
    assert seen == [first.add(days=number) for number in range(3)]


STOCK = """
from datetime import timedelta
from airflow.sdk import DAG, CronTriggerTimetable
from airflow.providers.standard.operators.empty import EmptyOperator
MIDNIGHT = CronTriggerTimetable("0 0 * * *", timezone="UTC", run_immediately=timedelta(0))
with DAG("stock", schedule=MIDNIGHT):
    EmptyOperator(task_id="nothing")
"""


def test_neither_a_stop_nor_a_backfill_starts_a_run(tmp_path):
    """For comparison, a DAG with Airflow's stock timetable does start a run in both cases."""
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "stock.py").write_text(STOCK)
    own = {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "fleet" / "plugins"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/airflow.db",
        "MUSIC_GENRE_DAILY": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    script = Path(__file__).with_name("schedule_process.py")
    ended = subprocess.run(
        [sys.executable, script, REPOSITORY / "dags", tmp_path / "dags"],
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout.splitlines()[-1])
    ours = dict.fromkeys(("music_genre_training", "music_genre_docker"), seen["ahead"])
    assert seen["at first"] == ours | {"stock": seen["tomorrow"]}
    assert seen["after a backfill"] == ours | {"stock": seen["midnight"]}
    assert seen["when the scheduler starts"] == {}
    assert seen["after a stop"] == ours | {"stock": seen["midnight"]}
    assert seen["put in line"] == {"device-cpu": ["cpu", True], "device-gpu": ["gpu", True]}
