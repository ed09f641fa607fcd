"""Airflow knows every Airflow setting that a stack sets."""

import re
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


def names_of(text: str) -> set[tuple[str, str]]:
    found = re.findall(r"\bAIRFLOW__([A-Z0-9_]+?)__([A-Z0-9_]+)", text)
    return {(section.lower(), key.lower()) for section, key in found}


def unknown(names: set[tuple[str, str]]) -> set[tuple[str, str]]:
    described = conf.configuration_description
    return {
        (section, key)
        for section, key in names
        if section not in HANDED_ON and key not in described.get(section, {}).get("options", {})
    }


def test_airflow_has_every_setting_that_we_make():
    files = [path for place in PLACES for path in REPOSITORY.glob(place)]
    names = set().union(*(names_of(path.read_text()) for path in files))
    assert len(names) >= 30, "the search finds less than there is"
    assert unknown(names) == set()


@pytest.mark.parametrize("name", ["AIRFLOW__CORE__EXECUTER", "AIRFLOW__DAG_PROCESOR__PARALLELISM"])
def test_a_setting_that_airflow_does_not_have_is_found(name):
    assert len(unknown(names_of(f"{name}=1"))) == 1
