"""Runs last: the same project as a new user starts it, without the tests' files or a profile.

This also shows what becomes of the data when every container is replaced.
"""

import json
import re
import subprocess

import pytest
from conftest import FAST, NAME, container, deploy, finish, inside, inspect, log_of, wait_until
from test_privileges import LASTING, TABLE, secrets_in

from deploy.containers.stack import ComposeStack
from deploy.demo import Run, trigger
from deploy.running import ask

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def left(run: Run) -> tuple[str, str]:
    """Address and text of the training's result file, read before every container is removed."""
    address = f"{run.result('train')['run']}/training.json"
    return address, inside("gpu-worker", "cat", address).stdout


@pytest.fixture(scope="module")
def started(stack, left, plain) -> ComposeStack:
    # Models go to the volume now. An existing repository of versions would keep its old remote.
    assert inside("cpu-worker", "sh", "-c", "rm -rf /versions/*").returncode == 0
    plain.compose("rm", "--stop", "--force")  # its services, not the proxy's profile
    up = deploy("up", "--project", NAME, "--env-file", str(plain.env_file), "--daily")
    assert up.returncode == 0, up.stdout + up.stderr
    assert re.search(r"music_genre_training runs next at \d{4}-\d\d-\d\dT00:00:00Z", up.stderr)
    assert "gpu: CPU" in up.stdout
    stack = ComposeStack(plain)
    wait_until(lambda: ask(stack.is_healthy))
    return stack


def test_the_engines_proxy_is_gone_with_its_profile(started):
    names = subprocess.check_output(["docker", "ps", "-a", "--format", "{{.Names}}"], text=True)
    assert container("webserver") in names.split()
    assert not {container("socket-proxy"), container("gpu-worker-2")} & {*names.split()}


def test_artifacts_outlive_every_container(started, left):
    address, text = left
    assert json.loads(text)
    assert inside("gpu-worker", "cat", address).stdout == text


@pytest.mark.parametrize("service", LASTING)
def test_a_container_knows_the_secrets_of_its_row(started, plain, service):
    assert secrets_in(json.dumps(inspect(service)["Config"]), plain) == TABLE[service].secrets


def test_a_training_finds_its_work_done_and_is_published_to_the_volume(started):
    again = trigger(started, FAST)
    assert finish(again) == "success", again.rows()
    assert again.result("train")["reused"] is True
    assert again.result("publish")["remote"] == "/versions/dvc"
    assert "music-genre train" in log_of(started, again, "train")  # the log is in the volume
