"""Roll-outs while tasks run: changed images, a slow or broken webserver, a restart of all."""

import subprocess
import time
from pathlib import Path

import pytest
from conftest import FAST, NAME, containers_of, finish, log_of, wait_until

from deploy.airflow_api import path
from deploy.containers import rollout
from deploy.containers.stack import ComposeStack, Project
from deploy.demo import Run, trigger
from deploy.errors import DeployError
from deploy.running import ask

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
IMAGES = ("airflow", "cpu-worker", "gpu-worker")
ROUNDS = 10
DELAY_SECONDS = 240
WORKERS = ("cpu-worker", "gpu-worker")


def change_images(number: int) -> None:
    """Add a label to each image of the stack, so that Compose finds a changed image."""
    for name in IMAGES:
        tag = f"music-genre/{name}:test"
        text = f"FROM {tag}\nLABEL of.round={number}\n"
        words = ["docker", "build", "-q", "-t", tag, "-"]
        subprocess.run(words, input=text, text=True, check=True, capture_output=True)


def with_file(project: Project, folder: Path, text: str) -> Project:
    """The project with one more Compose file."""
    file, env_file = folder / "more.yml", folder / ".env"
    file.write_text(text)
    lines = project.env_file.read_text().replace("stack.yml\n", f"stack.yml:{file}\n")
    env_file.write_text(lines)
    return Project(project.name, env_file)


@pytest.fixture
def training(stack, few):
    """A training that runs until the test ends."""
    run = trigger(stack, {**FAST, "epochs": 4000, "seed": time.time_ns() % 1000, "audio": few})
    wait_until(lambda: "epoch=1 " in log_of(stack, run, "train"))
    yield run
    stack.api.patch(path("dags", run.dag_id, "dagRuns", run.run_id), {"state": "failed"})


def tries(stack: ComposeStack, run: Run) -> set[int]:
    """The try numbers of a run's tasks that have started."""
    listed = stack.api.get(f"{run._address}/taskInstances?limit=100")["task_instances"]
    return {each["try_number"] for each in listed if each["start_date"]}


def n_epochs(stack: ComposeStack, run: Run) -> int:
    """How many epochs the logs of all tries of the training show."""
    newest = max(tries(stack, run))
    return sum(log_of(stack, run, "train", each).count("epoch=") for each in range(1, newest + 1))


def goes_on(stack: ComposeStack, run: Run) -> None:
    before = n_epochs(stack, run)
    wait_until(lambda: n_epochs(stack, run) > before, seconds=180)


def test_roll_outs_with_changed_images_spend_no_try(stack, project, training, figures):
    seconds = []
    for number in range(ROUNDS):
        short = trigger(stack, {}, "short")
        wait_until(lambda: "running" in [row.state for row in short.rows()])  # noqa: B023
        change_images(number)
        assert set(rollout._outdated(project)) > {"webserver", "scheduler", *WORKERS}
        began = time.monotonic()
        rollout.start(project)
        seconds.append(time.monotonic() - began)
        assert finish(short) == "success", short.rows()
        assert tries(stack, short) == {1}
        goes_on(stack, training)
        assert tries(stack, training) == {1}, training.rows()
    figures["roll-outs with changed images"] = (
        f"{ROUNDS}, each with a training and 20 short tasks; {min(seconds):.0f} to "
        f"{max(seconds):.0f} s; no try spent"
    )


def test_a_slow_webserver_does_not_keep_workers_from_running(
    stack, project, training, tmp_path, figures
):
    start = "exec airflow api-server --host 0.0.0.0 --port 8080"
    command = f'["sh", "-c", "sleep {DELAY_SECONDS}; {start}"]'
    slow = with_file(project, tmp_path, f"services: {{webserver: {{command: {command}}}}}\n")
    began = time.monotonic()
    try:
        rollout.start(slow)
    finally:
        running = {name for name in WORKERS if containers_of(name)}
        waited = time.monotonic() - began
    assert running == {*WORKERS}
    wait_until(lambda: ask(stack.is_healthy), seconds=300)
    check = trigger(stack, {}, "fleet_check")
    assert finish(check) == "success", check.rows()
    goes_on(stack, training)
    assert tries(stack, training) == {1}, training.rows()
    figures["webserver delayed"] = f"by {DELAY_SECONDS} s: workers ran after {waited:.0f} s"
    rollout.start(project)


def test_a_roll_out_that_fails_leaves_workers_running_and_the_next_one_completes(
    stack, project, training, tmp_path, capfd
):
    command = '["sh", "-c", "exit 3"]'
    broken = with_file(project, tmp_path, f"services: {{webserver: {{command: {command}}}}}\n")
    with pytest.raises(DeployError, match="run `make up` again"):
        rollout.start(broken)
    assert {name for name in WORKERS if containers_of(name)} == {*WORKERS}
    assert "still outdated: nothing" in capfd.readouterr().err
    rollout.start(project)
    goes_on(stack, training)
    assert tries(stack, training) == {1}, training.rows()


def test_after_a_restart_of_all_containers_at_once_the_training_goes_on(stack, training, figures):
    """Like a restart of the engine or a reboot, this can use up one retry of the training."""
    names = subprocess.check_output(
        ["docker", "ps", "-q", "--filter", f"label=com.docker.compose.project={NAME}"], text=True
    ).split()
    subprocess.run(["docker", "restart", "-t", "60", *names], check=True, capture_output=True)
    wait_until(lambda: ask(stack.is_healthy), seconds=300)
    goes_on(stack, training)
    (last,) = {max(tries(stack, training))}
    assert last <= 2
    figures["all containers restarted at once"] = f"the training went on in its try {last}"
    check = trigger(stack, {}, "fleet_check")
    assert finish(check) == "success", check.rows()
