"""Connections as Airflow reads them; these tests set them in AIRFLOW_CONN_ variables."""

import json

import pytest
from airflow.sdk.exceptions import AirflowFailException
from task_process import start_task

from fleet.operators.credentials import with_s3_connection

WORKERS_OWN = {
    "AWS_ACCESS_KEY_ID": "workers-key",
    "AWS_SECRET_ACCESS_KEY": "workers-secret",
    "AWS_SESSION_TOKEN": "workers-token",
    "AWS_SHARED_CREDENTIALS_FILE": "/run/secrets/aws",
    "AWS_ENDPOINT_URL": "http://s3:8333",
    "PATH": "/bin",
}


@pytest.fixture
def connection(monkeypatch):
    for name in WORKERS_OWN.keys() - {"PATH"}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def define(**fields) -> None:
        text = json.dumps({"conn_type": "aws", **fields})
        monkeypatch.setenv("AIRFLOW_CONN_MUSIC_GENRE_S3", text)

    return define


def test_without_the_connection_the_command_has_the_workers_own_credentials():
    assert with_s3_connection(WORKERS_OWN, "no_such_connection") is WORKERS_OWN


def test_a_connection_takes_the_place_of_all_other_credentials(connection):
    connection(login="given-key", password="given-secret")
    assert with_s3_connection(WORKERS_OWN, "music_genre_s3") == {
        "AWS_ACCESS_KEY_ID": "given-key",
        "AWS_SECRET_ACCESS_KEY": "given-secret",
        "AWS_ENDPOINT_URL": "http://s3:8333",
        "PATH": "/bin",
    }


def test_session_token_address_and_region_come_from_its_extras(connection):
    extra = {"aws_session_token": "given-token", "endpoint_url": "https://s3.test"}
    extra["region_name"] = "eu-central-1"
    connection(login="given-key", password="given-secret", extra=extra)
    made = with_s3_connection(WORKERS_OWN, "music_genre_s3")
    assert made["AWS_SESSION_TOKEN"] == "given-token"
    assert made["AWS_ENDPOINT_URL"] == "https://s3.test"
    assert made["AWS_DEFAULT_REGION"] == "eu-central-1"


def test_a_connection_without_credentials_is_named_with_its_remedy(connection):
    connection()
    with pytest.raises(AirflowFailException, match=r"music_genre_s3 has no credentials; set its"):
        with_s3_connection(WORKERS_OWN, "music_genre_s3")


def test_a_command_sees_them_and_its_task_shows_none(connection):
    connection(login="given-key", password="given-secret")
    see = (
        """echo "{\\"key\\": \\"$AWS_ACCESS_KEY_ID\\", \\"length\\": ${#AWS_SECRET_ACCESS_KEY}}" """
    )
    end = start_task("sh", "-c", see, s3_connection="music_genre_s3").outcome()
    assert end["result"] == {"key": "given-key", "length": len("given-secret")}, end
    assert not any("given-secret" in line for line in end["lines"])
