"""Last, the same project as a new user starts it: without a file of the tests, or a profile.

It is also what becomes of data when every container is replaced.
"""

import json
import subprocess

import pytest
from conftest import FAST, NAME, container, deploy, finish, inside, log_of

from deploy.compose import ComposeStack
from deploy.demo import Run, trigger

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def checkpoint(run) -> str:
    """What the run's training left, before every container went."""
    return inside("gpu-worker", "cat", f"{run.result('train')['run']}/training.json").stdout


@pytest.fixture(scope="module")
def started(stack, checkpoint, plain) -> ComposeStack:
    # Models go to the volume now: a repository of versions goes on with the remote that it has.
    assert inside("cpu-worker", "sh", "-c", "rm -rf /versions/*").returncode == 0
    down = deploy("down", "--project", NAME)
    assert down.returncode == 0, down.stderr
    up = deploy("up", "--project", NAME, "--env-file", str(plain.env_file))
    assert up.returncode == 0, up.stdout + up.stderr
    assert "gpu: CPU" in up.stdout
    return ComposeStack(plain)


def test_no_container_of_a_profile_is_left(started):
    names = subprocess.check_output(["docker", "ps", "-a", "--format", "{{.Names}}"], text=True)
    assert container("webserver") in names.split()
    assert not {container(name) for name in ("socket-proxy", "s3", "gpu-worker-2")} & {
        *names.split()
    }


def test_artifacts_and_logs_outlive_every_container(started, run, checkpoint):
    where = f"{run.result('train')['run']}/training.json"
    assert json.loads(checkpoint)
    assert inside("gpu-worker", "cat", where).stdout == checkpoint
    before = Run(started, run.dag_id, run.run_id)
    assert "epoch=1 " in log_of(started, before, "train")


def test_a_training_finds_its_work_done_and_is_published_to_the_volume(started):
    again = trigger(started, FAST)
    assert finish(again) == "success", again.rows()
    assert again.result("train")["reused"] is True
    assert again.result("publish")["remote"] == "/versions/dvc"
