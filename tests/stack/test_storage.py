"""A stack with its own S3 keeps task logs there; S3 refuses a wrong key."""

import subprocess

import pytest
from conftest import finish, inside, log_of, wait_until

from deploy.containers import environment
from deploy.demo import Run, trigger

pytestmark = pytest.mark.timeout(900)
SCRIPT = """
import sys, boto3
from botocore.exceptions import ClientError
options = {"aws_secret_access_key": sys.argv[1]} if sys.argv[1:] else {}
if options:
    options["aws_access_key_id"] = "s3:admin"
try:
    listed = boto3.client("s3", **options).list_objects_v2(Bucket="music-genre", Prefix="logs/")
except ClientError as error:
    sys.exit(f"refused: {error.response['ResponseMetadata']['HTTPStatusCode']}")
print(*(each["Key"] for each in listed.get("Contents", [])), sep="\\n")
"""


def objects(*words: str) -> subprocess.CompletedProcess:
    return inside("cpu-worker", "python", "-c", SCRIPT, *words)


@pytest.fixture(scope="module")
def check(stack) -> Run:
    run = trigger(stack, {}, "fleet_check")
    assert finish(run) == "success", run.rows()
    return run


def test_task_logs_go_to_s3_and_are_read_from_there(stack, check):
    for task in ("device-cpu", "device-gpu"):  # a log is sent only after its task has ended
        wait_until(lambda: f"run_id={check.run_id}/task_id={task}/" in objects().stdout)  # noqa: B023
    assert inside("gpu-worker", "sh", "-c", "rm -rf /opt/airflow/logs/*").returncode == 0
    for task in ("device-cpu", "device-gpu"):
        assert '"device_name"' in log_of(stack, check, task).replace("\\", "")


def test_a_wrong_key_gets_nothing(stack):
    assert objects("wrong").stderr.strip() == "refused: 403"


def test_the_key_is_known_to_those_who_need_it_and_no_other(stack, project):
    key = environment.read(project.env_file)["AWS_SECRET_ACCESS_KEY"]
    knowing = set()
    for service in ("webserver", "scheduler", "dag-processor", "triggerer", "flower", "redis"):
        environments = inside(service, "sh", "-c", "cat /proc/[0-9]*/environ").stdout
        knowing |= {service} if key in environments else set()
    assert knowing == {"webserver", "triggerer"}
    for service in ("cpu-worker", "gpu-worker"):
        assert key in inside(service, "sh", "-c", "cat /proc/[0-9]*/environ").stdout


def test_the_key_is_in_no_log(stack, check, project):
    values = environment.read(project.env_file)
    words = ["docker", "compose", "-p", project.name, "logs", "--no-color"]
    ended = subprocess.run(words, cwd="/", capture_output=True, text=True, check=True)
    shown = ended.stdout + ended.stderr
    shown += log_of(stack, check, "device-cpu") + log_of(stack, check, "device-gpu")
    assert [name for name in environment.SECRETS if values[name] in shown] == []
