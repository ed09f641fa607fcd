"""The training DAG on the real stack: a run through the REST API, on a few tracks."""

import base64
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from conftest import down_local, secrets_of, up_local, wait_until

from deploy.airflow_api import path
from deploy.demo import Run, trigger
from deploy.embedded.processes import programs
from deploy.embedded.stack import LocalStack
from deploy.embedded.supervisor import supervisord_process
from deploy.errors import DeployError
from deploy.places import ENVIRONMENTS, TRAINING_DAG
from deploy.running import ask

pytestmark = pytest.mark.timeout(900)  # a start alone can take minutes

FAST = {"model": "squeezenet1_1", "epochs": 1, "learning_rate": 0.001, "seed": 7}
N_GENRES = 7


def finish(run: Run, seconds: float = 240.0) -> str:
    give_up_at = time.monotonic() + seconds
    while (state := run.state()) not in ("success", "failed"):
        assert time.monotonic() < give_up_at, run.rows()
        time.sleep(0.5)
    return state


@pytest.fixture(scope="module")
def run(stack, few):
    run = trigger(stack, {**FAST, "audio": few})
    assert finish(run) == "success", run.rows()
    return run


def test_a_dag_that_can_be_parsed_adds_no_line_to_a_log(stack, run):
    """Each DAG is parsed every half minute; with a line each time, the log would grow for ever."""
    logs = list((stack.state.logs / "dag-processor-files").rglob("*.py.log"))
    assert {log.name for log in logs} >= {f"{TRAINING_DAG}.py.log", "fleet_check.py.log"}
    assert [log for log in logs if "Filling up the DagBag" in log.read_text()] == []


def test_every_task_ran_on_a_worker_of_its_queue(run):
    rows = run.rows()
    assert [row.name for row in rows] == [
        "check",
        "pull",
        "scan",
        *(f"extract {shard}" for shard in (1, 2, 3, 4)),
        "split",
        "train",
        "evaluate",
        "publish",
    ]
    for row in rows:
        assert row.state == "success"
        assert row.worker.partition("@")[0] == row.queue
    on_gpu = {row.name for row in rows if row.queue == "gpu"}
    assert on_gpu == {"train", "evaluate"}


def test_artifacts_lie_where_the_results_say(stack, run):
    assert run.result("scan")["n_tracks"] == 8 * N_GENRES
    assert run.result("split")["test"] >= N_GENRES
    metrics = json.loads(Path(run.result("evaluate")["metrics"]).read_text())
    assert 0 <= metrics["accuracy"] <= 1
    assert str(stack.state.artifacts) in run.result("train")["run"]


def test_the_log_of_the_training_is_readable_by_the_api(stack, run):
    address = path("dags", TRAINING_DAG, "dagRuns", run.run_id, "taskInstances", "train", "logs", 1)
    text = json.dumps(stack.api.get(f"{address}?full_content=true"))
    assert "epoch=1" in text
    assert "train_loss=" in text
    assert "no NVIDIA GPU is visible" in text or run.result("train")["device"] != "cpu"


def test_the_model_is_published_with_what_it_comes_from(stack, run):
    published = run.result("publish")
    message = git(stack, "log", "-1", "--format=%B", published["tag"])
    assert f"Airflow-Run: {TRAINING_DAG}/{run.run_id}" in message
    assert re.search(r"^Data-Hash: [0-9a-f]{12}$", message, re.M)
    accuracy = run.result("evaluate")["accuracy"]
    assert f"accuracy {accuracy:.3f}" in message
    (event,) = events_of(stack, run)
    assert event["extra"]["accuracy"] == accuracy
    assert event["extra"]["commit"] == published["commit"]


def test_a_dag_runs_on_the_new_model(stack, run):
    """The DAG has no time schedule: only the event of a new model starts it."""
    address = path("dags", "music_genre_new_model", "dagRuns")
    wait_until(lambda: stack.api.get(f"{address}?state=success")["dag_runs"], 60)
    (told, *_) = stack.api.get(f"{address}?state=success&order_by=id")["dag_runs"]
    rows = Run(stack, "music_genre_new_model", told["dag_run_id"])
    assert run.result("publish")["model"] in json.dumps(rows.xcom("tell"))


def git(stack, *words: str) -> str:
    command = ["git", "-C", str(stack.state.versions / "music-genre.git"), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def events_of(stack, run: Run) -> list[dict]:
    """The events that a run emitted for published models."""
    listed = stack.api.get(f"assets/events?source_run_id={quote(run.run_id)}&limit=100")
    found = [each for each in listed["asset_events"] if each["source_run_id"] == run.run_id]
    return [each for each in found if each["source_task_id"] == "publish"]


def test_a_second_run_finds_its_work_done(stack, run, few):
    n_commits = git(stack, "rev-list", "--count", "main")
    began = time.monotonic()
    second = trigger(stack, {**FAST, "audio": few})
    assert finish(second) == "success"
    seconds = time.monotonic() - began
    print(f"the second, identical run took {seconds:.1f} s")
    assert seconds < 120
    assert second.result("publish")["reused"] is True
    assert git(stack, "rev-list", "--count", "main") == n_commits
    assert events_of(stack, second) == []
    extracted = [second.result("extract", shard) for shard in range(4)]
    assert sum(each["n_extracted"] for each in extracted) == 0
    assert second.result("train")["reused"] is True
    assert second.result("train")["run"] == run.result("train")["run"]


@pytest.mark.soak
def test_ten_tracks_more_are_ten_extracted(stack, few, tmp_path):
    """Here the data are versions in a repository; the second run takes the newest version."""
    music = tmp_path / "genres"
    shutil.copytree(few, music)
    kept = sorted(music.rglob("*.ogg"))[::5][:10]
    n_tracks = len(list(music.rglob("*.ogg")))
    away = [path.rename(tmp_path / path.name) for path in kept]
    publish(stack, music)
    versioned = {**FAST, "audio": "dvc:demo/genres"}
    first = trigger(stack, versioned)
    assert finish(first) == "success", first.rows()
    assert first.result("scan")["n_tracks"] == n_tracks - 10
    for path_, at in zip(away, kept, strict=True):
        path_.rename(at)
        with at.open("ab") as file:  # else the images of an earlier test are reused
            file.write(b"\0")
    publish(stack, music)
    second = trigger(stack, versioned)
    assert finish(second) == "success", second.rows()
    assert second.result("pull")["version"] != first.result("pull")["version"]
    assert sum(second.result("extract", shard)["n_extracted"] for shard in range(4)) == 10
    assert second.result("train")["reused"] is False


def publish(stack, music: Path) -> None:
    """Publish a data set as a user does by hand, but with the cpu worker's environment."""
    environment = programs(stack.state)["cpu-worker"].environment
    words = ["music-genre", "publish", "--data", str(music), "--name", "demo"]
    program = str(ENVIRONMENTS / "ml" / "bin" / words[0])
    subprocess.run([program, *words[1:]], check=True, env=environment)


WRONG = {
    "path": ({"audio": "/no/such/folder"}, "error: /no/such/folder: no such folder; give an"),
    "model": ({"model": "resnt18"}, "torchvision has no such model; similar names: resnet18"),
    "revision": ({"revision": "v1"}, "a folder has no revision v1; give dvc:PATH"),
    "name": ({"modle": "resnet18"}, "run parameter 'modle' is unknown; write model"),
}


@pytest.fixture(scope="module")
def refused(stack, few):
    """One run for each wrong input; they run side by side."""
    given = {**FAST, "audio": few}
    return {name: trigger(stack, given | wrong) for name, (wrong, _) in WRONG.items()}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_ends_a_run_in_its_first_task_and_says_why(stack, refused, name):
    run, (_, reason) = refused[name], WRONG[name]
    assert finish(run) == "failed"
    rows = run.rows()
    states = {row.name: row.state for row in rows}
    assert states.pop("check") == "failed"
    assert set(states.values()) == {"upstream_failed"}
    assert rows[0].seconds < 30  # measured: 0.5 to 3.5 s
    address = path("dags", TRAINING_DAG, "dagRuns", run.run_id, "taskInstances", "check")
    assert stack.api.get(address)["try_number"] == 1
    log = stack.api.get(f"{address}/logs/1?full_content=true")["content"]
    errors = [line for line in log if line.get("level") == "error"]
    assert reason in errors[-1]["event"], log


def test_a_command_of_airflow_runs_as_the_scheduler_sees_the_world(stack):
    """`dags test` runs tasks in its own process, so it needs the database and the commands."""
    words = [sys.executable, "-m", "deploy", "airflow", "--state", str(stack.state.folder)]
    tested = subprocess.run([*words, "dags", "test", "fleet_check"], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr
    assert "state=success" in tested.stdout + tested.stderr
    told = subprocess.run([*words, "dags", "list-runs", "--help"], capture_output=True, text=True)
    assert "--state" in told.stdout


def test_parameters_out_of_bounds_are_refused_at_the_door(stack):
    with pytest.raises(DeployError, match="400"):
        trigger(stack, {**FAST, "epochs": 0})


def test_a_training_knows_no_secret_and_ends_when_its_run_is_marked_failed(stack):
    run = trigger(stack, {**FAST, "epochs": 500, "seed": 8})
    give_up_at = time.monotonic() + 120
    while not (trainers := _trainers(stack)):
        assert time.monotonic() < give_up_at, run.rows()
        time.sleep(0.2)
    environment = "\n".join(trainers[-1].environ().values())
    assert str(stack.state.artifacts) in environment
    for name, secret in secrets_of(stack).items():
        assert secret not in environment, name
    address = path("dags", TRAINING_DAG, "dagRuns", run.run_id, "taskInstances", "train")
    stack.api.patch(address, {"new_state": "failed"})
    gone, alive = psutil.wait_procs(trainers, timeout=20)
    assert gone
    assert not alive
    log = f"{address}/logs/1?full_content=true"
    said = "the task's state is now failed, so the task is not tried again"
    wait_until(lambda: said in json.dumps(stack.api.get(log)))
    assert "the task is rescheduled" not in json.dumps(stack.api.get(log))


def _trainers(stack):
    processes = supervisord_process(stack.state).children(recursive=True)
    return [each for each in processes if _is_trainer(each)]


def _is_trainer(process):
    try:
        words = process.cmdline()
        return "train" in words and any(word.endswith("/music-genre") for word in words)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("login", [None, ("admin", "wrong"), ("", "")])
def test_nobody_gets_in_without_the_password(stack, login):
    for address in (
        f"{stack.web_address}/api/v2/dags",
        f"{stack.web_address}/api/v2/config",
        f"{stack.flower_address}/api/workers",
        f"{stack.flower_address}/",
    ):
        assert status(urllib.request.Request(address, headers=basic(login))) == 401, address
    body = json.dumps(dict(zip(("username", "password"), login or ("admin", ""), strict=True)))
    request = urllib.request.Request(
        f"{stack.web_address}/auth/token",
        body.encode(),
        {"Content-Type": "application/json"},
    )
    assert status(request) in (400, 401, 422)


def basic(login: tuple[str, str] | None) -> dict[str, str]:
    if not login:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(":".join(login).encode()).decode()}


def status(request: urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_no_secret_shows_in_the_process_list_or_the_logs(stack, run):
    words = []
    for process in supervisord_process(stack.state).children(recursive=True):
        try:
            words += process.cmdline()
        except psutil.NoSuchProcess:
            continue
    logs = [log.read_text(errors="replace") for log in stack.state.logs.rglob("*.log")]
    for name, secret in secrets_of(stack).items():
        assert not any(secret in word for word in words), name
        assert not any(secret in log for log in logs), name
    for path_ in (stack.state.secrets_path, stack.state.supervisor_config):
        assert path_.stat().st_mode & 0o077 == 0


def scheduler_of(stack) -> int:
    return next(each.pid for each in stack.supervisor.processes() if each.name == "scheduler")


def test_a_run_goes_on_after_a_kill_of_the_scheduler_and_a_restart_of_the_stack(
    stack, few, fake_driver
):
    """Workers stop before the api-server, so they can report to it and no retry is spent.

    This is the last test, because the restart changes the ports.
    """
    run = trigger(stack, {**FAST, "epochs": 500, "seed": 3, "audio": few})
    killed = scheduler_of(stack)
    psutil.Process(killed).kill()
    train = path("dags", TRAINING_DAG, "dagRuns", run.run_id, "taskInstances", "train")
    log = f"{train}/logs/1?full_content=true"
    wait_until(lambda: ask(lambda: "epoch=1 " in json.dumps(stack.api.get(log))))
    assert scheduler_of(stack) not in (0, killed)
    down_local(stack.state.folder)
    said = up_local(stack.state.folder, fake_driver, "--daily")
    assert re.search(rf"{TRAINING_DAG} runs next at \d{{4}}-\d\d-\d\dT00:00:00Z", said), said
    after = LocalStack(stack.state)

    def resumed() -> str:
        return json.dumps(after.api.get(log)).partition("resuming at step")[2]

    wait_until(lambda: ask(lambda: "epoch=" in resumed()))
    assert "epoch=1 " not in resumed()
    assert (after.api.get(train)["state"], after.api.get(train)["try_number"]) == ("running", 1)
