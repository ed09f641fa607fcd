"""Data and models under version control, on the stack's own S3, which checks signatures."""

import json
import os
import subprocess
import time
from datetime import datetime

import pytest
from conftest import FAST, NAME, REPOSITORY, container, finish, inside, log_of, wait_until

from deploy.airflow_api import path
from deploy.containers import environment
from deploy.demo import trigger
from deploy.places import TRAINING_DAG

pytestmark = pytest.mark.timeout(900)
MUSIC = REPOSITORY / "deploy" / "demo_music" / "genres_original"
NEW = {"MUSIC_GENRE_GIT": "/tmp/new.git"}
REPOSITORY_OF_VERSIONS = "/versions/music-genre.git"


def worker(*command: str, **variables: str) -> subprocess.CompletedProcess:
    given = [word for pair in variables.items() for word in ("-e", "=".join(pair))]
    words = ["docker", "exec", *given, container("cpu-worker"), *command]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def git(*words: str) -> str:
    ended = worker("git", "-C", REPOSITORY_OF_VERSIONS, *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_clean_clone_elsewhere_predicts_the_same(stack, run, project):
    """Runs `git clone`, `dvc pull` and `predict` in a container outside the stack."""
    published = run.result("publish")
    assert published["remote"] == "s3://music-genre/dvc"
    values = environment.read(project.env_file)
    given = [f"{name}={values[name]}" for name in values if name.startswith("AWS_")]
    script = (
        f"git clone -q {REPOSITORY_OF_VERSIONS} /tmp/clone && cd /tmp/clone && "
        "dvc config --local core.site_cache_dir /tmp/site && "
        f"dvc pull -q -R {published['path']} && "
        f"music-genre predict --json --run {published['path']} /music/techno"
    )
    there = subprocess.run(
        [
            *("docker", "run", "--rm", "--network", f"{NAME}_work", "--tmpfs", "/tmp:exec"),
            *("-v", f"{NAME}_versions:/versions:ro", "-v", f"{MUSIC}:/music:ro"),
            *(word for each in given if each.partition("=")[2] for word in ("-e", each)),
            *("music-genre-classif:test", "sh", "-c", script),
        ],
        capture_output=True,
        text=True,
    )
    assert there.returncode == 0, there.stderr
    music = f"{container('gpu-worker')}:/tmp/music"
    tar = subprocess.run(["tar", "-C", str(MUSIC), "-c", "techno"], capture_output=True, check=True)
    words = ["docker", "exec", "-i", container("gpu-worker"), "sh", "-c"]
    unpack = "mkdir -p /tmp/music && tar -C /tmp/music -x"
    subprocess.run([*words, unpack], input=tar.stdout, check=True)
    own = inside(
        *("gpu-worker", "music-genre", "predict", "--json"),
        *("--run", run.result("train")["run"], "/tmp/music/techno"),
    )
    assert own.returncode == 0, own.stderr + music
    here = [json.loads(line)["probabilities"] for line in own.stdout.splitlines()]
    elsewhere = [json.loads(line)["probabilities"] for line in there.stdout.splitlines()]
    assert here == elsewhere != []


def test_the_documented_commands_bring_a_model_out_of_the_stacks_own_s3(run, project, tmp_path):
    published = run.result("publish")
    text = (REPOSITORY / "docs" / "versions.md").read_text()
    (commands,) = (each for each in text.split("```") if "DVC_SITE_CACHE_DIR" in each)
    for documented, here in (
        ("model/NAME-KEY.v1", published["tag"]),
        ("models/NAME-KEY", published["path"]),
        ("docker compose", f"docker compose -p {NAME} --env-file {project.env_file}"),
    ):
        assert documented in commands
        commands = commands.replace(documented, here)
    compose = os.environ | {"COMPOSE_FILE": str(REPOSITORY / "docker-compose.yml")}
    ended = subprocess.run(
        ["sh", "-ec", commands], cwd=tmp_path, env=compose, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    brought = tmp_path / "model" / published["path"]
    assert next(brought.glob("checkpoint-*.pt")).stat().st_size > 1_000_000
    assert (brought / "evaluation.tar").exists()


def test_an_identical_run_trains_nothing_commits_nothing_and_is_short(stack, run):
    before = git("rev-list", "--count", "main")
    second = trigger(stack, FAST)
    assert finish(second) == "success"
    assert second.result("train")["reused"] is True
    assert second.result("publish")["reused"] is True
    assert git("rev-list", "--count", "main") == before
    about = stack.api.get(path("dags", TRAINING_DAG, "dagRuns", second.run_id))
    began, ended = (datetime.fromisoformat(about[name]) for name in ("start_date", "end_date"))
    print(f"an identical run: {(ended - began).total_seconds():.1f} s")
    assert (ended - began).total_seconds() < 120


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, 65, "s3://music-genre/dvc: listing: the secret key"),
        (
            NEW | {"MUSIC_GENRE_DVC_REMOTE": "s3://no-such-bucket/dvc"},
            65,
            "there is no such bucket",
        ),
        ({"AWS_ACCESS_KEY_ID": "s3:nobody"}, 65, "s3://music-genre/dvc: listing: the "),
        ({"AWS_ENDPOINT_URL": "http://s3:1"}, 75, "http://s3:1 does not answer"),
        ({"AWS_ENDPOINT_URL": "http://no-such-host.invalid"}, 75, "does not answer"),
    ],
)
def test_what_is_wrong_with_the_storage_is_one_line(stack, run, variables, code, words):
    before = git("rev-list", "--all", "--count")
    ended = worker("music-genre", "publish", "--run", run.result("train")["run"], **variables)
    assert ended.returncode == code, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert git("rev-list", "--all", "--count") == before


def test_an_airflow_connection_takes_the_place_of_the_workers_credentials(stack, project):
    values = environment.read(project.env_file)
    wrong = {"connection_id": "music_genre_s3", "conn_type": "aws", "password": "wrong-secret"}
    wrong["login"] = values["AWS_ACCESS_KEY_ID"]
    stack.api.post("connections", wrong)
    try:
        run = trigger(stack, FAST)
        assert finish(run) == "failed"
    finally:
        right = wrong | {"password": values["AWS_SECRET_ACCESS_KEY"]}
        stack.api.patch(path("connections", "music_genre_s3"), right)
    line = "s3://music-genre/dvc: listing: the secret key does not belong to the access key"
    assert line in log_of(stack, run, "publish")
    assert "wrong-secret" not in log_of(stack, run, "publish")
    again = {"dag_run_id": run.run_id, "task_ids": ["publish"], "dry_run": False}
    stack.api.post(path("dags", TRAINING_DAG, "clearTaskInstances"), again)
    assert finish(run) == "success"


def test_four_that_publish_at_once_lose_nothing(stack, run):
    before = int(git("rev-list", "--count", "main"))
    make = (
        "mkdir -p /artifacts/four/$number/a; head -c 1M /dev/urandom >/artifacts/four/$number/a/b"
    )
    publish = "music-genre publish --data /artifacts/four/$number --name four-$number &"
    script = f'for number in 1 2 3 4; do {make}; {publish} all="$all $!"; done; '
    script += "for each in $all; do wait $each || exit 1; done"
    ended = worker("sh", "-c", script)
    assert ended.returncode == 0, ended.stderr
    published = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [each["reused"] for each in published] == [False] * 4
    assert int(git("rev-list", "--count", "main")) == before + 4
    assert git("rev-list", "--merges", "main") == ""  # the history is linear
    tags = set(git("tag").split())
    assert {f"data/four-{number}.v1" for number in range(1, 5)} <= tags


@pytest.mark.soak
@pytest.mark.parametrize("order", [("stop", "start"), ("pause", "unpause")], ids=["stop", "pause"])
def test_an_s3_that_goes_away_during_a_push_leaves_no_commit_and_the_retry_completes(
    stack, run, order, figures
):
    data = f"/artifacts/random-{order[0]}"
    make = f"mkdir -p {data}/a && for i in $(seq 20); do head -c 8M /dev/urandom >{data}/a/$i; done"
    assert worker("sh", "-c", make).returncode == 0
    publish = ["music-genre", "publish", "--data", data, "--name", f"random-{order[0]}"]
    before = git("rev-list", "--all", "--count")
    kept = n_large_objects()
    words = ["docker", "exec", container("cpu-worker"), "timeout", "-k5", "400", *publish]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as cut:
        while n_large_objects() == kept:
            assert cut.poll() is None, cut.communicate()
        began = time.monotonic()
        try:
            subprocess.run(["docker", order[0], container("s3")], check=True)
            stdout, stderr = cut.communicate()
        finally:  # the other tests need a running S3
            subprocess.run(["docker", order[1], container("s3")], check=True)
    figures["noticed after"] = f"{time.monotonic() - began:.0f} s"
    connect = "import socket; socket.create_connection(('s3', 8333), 2)"
    wait_until(lambda: worker("python3", "-c", connect).returncode == 0)
    assert cut.returncode == 75, stdout + stderr
    (line,) = stderr.splitlines()
    assert "s3://music-genre/dvc: dvc push: " in line
    assert "does not answer" in line or "reports a problem" in line
    assert git("rev-list", "--all", "--count") == before
    done = worker(*publish)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reused"] is False
    assert int(git("rev-list", "--all", "--count")) == int(before) + 1


def n_large_objects() -> int:
    """How many objects of more than 1 MiB the S3 keeps, or is just receiving."""
    return len(inside("s3", "find", "/data", "-type", "f", "-size", "+1M").stdout.splitlines())


def processes_while(*command: str) -> str:
    """The command lines of all processes on this machine while a worker runs a command."""
    words = ["docker", "exec", container("cpu-worker"), *command]
    listed = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        while running.poll() is None:
            listed.append(subprocess.check_output(["ps", "-eo", "args"], text=True))
        running.communicate()
    assert running.returncode == 0
    return "".join(listed)


def test_the_key_is_nowhere_but_in_the_environment(stack, run, project):
    """No log, rendered field, XCom, volume, commit, image history or process list has the key."""
    values = environment.read(project.env_file)
    secrets = {name: values[name] for name in ("S3_SECRET_KEY", "REDIS_WORKER_PASSWORD")}
    dump = inside("postgres", "pg_dump", "-U", "airflow", "airflow")
    assert run.run_id in dump.stdout
    listed = processes_while("music-genre", "publish", "--run", run.result("train")["run"])
    assert "-m music_genre publish --run" in listed
    images = [f"music-genre/{name}:test" for name in ("cpu-worker", "gpu-worker", "airflow")]
    histories = "".join(
        subprocess.check_output(["docker", "history", "--no-trunc", image], text=True)
        for image in images
    )
    logs = "".join(log_of(stack, run, task) for task in ("pull", "scan", "split", "publish"))
    words = ["docker", "compose", "-p", project.name, "logs", "--no-color"]
    logs += subprocess.run(words, cwd="/", capture_output=True, text=True, check=True).stdout
    everything = {"database": dump.stdout, "processes": listed, "images": histories, "logs": logs}
    everything["git"] = git("log", "--all", "--patch")
    assert "Airflow-Run: " in everything["git"]
    for name, secret in secrets.items():
        for where, text in everything.items():
            assert secret not in text, f"{name} in {where}"
        for folder in ("/artifacts", "/versions", "/opt/airflow/logs"):
            found = worker("grep", "-rlF", "--", secret, folder)
            assert (found.returncode, found.stdout) == (1, ""), f"{name} in {folder}"
