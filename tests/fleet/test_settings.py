"""Airflow knows every Airflow setting that a stack sets."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from airflow.configuration import conf

REPOSITORY = Path(__file__).parents[2]
PLACES = (
    "docker-compose.yml",
    "deploy/**/*.env",
    "deploy/**/*.yml",
    "deploy/**/*.py",
    "fleet/*.py",
)
HANDED_ON = {"celery_broker_transport_options"}
"""Sections whose keys Airflow passes on, unchecked, to another library."""


UNDESCRIBED = {("scheduler", "num_stuck_in_queued_retries")}
"""Options that Airflow 3.3.2 reads, although it describes them nowhere."""


def names_of(text: str) -> set[tuple[str, str]]:
    found = re.findall(r"\bAIRFLOW__([A-Z0-9_]+?)__([A-Z0-9_]+)", text)
    return {(section.lower(), key.lower()) for section, key in found}


def unknown(names: set[tuple[str, str]]) -> set[tuple[str, str]]:
    described = conf.configuration_description
    return {
        (section, key)
        for section, key in names
        if section not in HANDED_ON
        and (section, key) not in UNDESCRIBED
        and key not in described.get(section, {}).get("options", {})
    }


def test_airflow_has_every_setting_that_we_make():
    files = [path for place in PLACES for path in REPOSITORY.glob(place)]
    names = set().union(*(names_of(path.read_text()) for path in files))
    assert len(names) >= 30, "the search finds less than there is"
    assert unknown(names) == set()


def test_airflow_reads_what_it_does_not_describe():
    source = Path(find_spec("airflow.jobs.scheduler_job_runner").origin).read_text()
    for _, key in UNDESCRIBED:
        assert f'key="{key}"' in source


@pytest.mark.parametrize("name", ["AIRFLOW__CORE__EXECUTER", "AIRFLOW__DAG_PROCESOR__PARALLELISM"])
def test_a_setting_that_airflow_does_not_have_is_found(name):
    assert len(unknown(names_of(f"{name}=1"))) == 1
