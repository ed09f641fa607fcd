"""One stack of containers for all tests, beside any other of this machine."""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy import environment
from deploy.airflow_api import NotFoundError, path
from deploy.compose import ComposeStack, Project
from deploy.demo import Run

REPOSITORY = Path(__file__).resolve().parent.parent.parent
NAME = "music-genre-test"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def deploy(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "deploy", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def engine_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Project:
    if not engine_answers():
        pytest.skip("no Docker engine answers: the stack of containers is not tested")
    env_file = tmp_path_factory.mktemp("stack") / ".env"
    environment.ensure(env_file)
    with env_file.open("a") as file:
        file.write(f"WEB_PORT={free_port()}\nFLOWER_PORT={free_port()}\nTAG=test\n")
    return Project(NAME, env_file)


@pytest.fixture(scope="session")
def stack(project: Project) -> ComposeStack:
    down = ("down", "--project", NAME, "--volumes")
    deploy(*down)  # what a killed test left
    try:
        up = deploy("up", "--project", NAME, "--env-file", str(project.env_file))
        assert up.returncode == 0, up.stdout + up.stderr
        assert "cpu: CPU; torch is not installed" in up.stdout
        yield ComposeStack(project)
    finally:
        ended = deploy(*down)
    assert ended.returncode == 0, ended.stderr
    for kind in ("container", "network", "volume"):
        words = ["docker", kind, "ls", "-q", "--filter", f"label=com.docker.compose.project={NAME}"]
        words += ["-a"] if kind == "container" else []
        assert subprocess.check_output(words, text=True) == "", kind


@pytest.fixture(scope="session")
def with_s3(stack, project):
    """The same stack, given the profile `s3` while it runs, with nothing published yet."""
    up = deploy("up", "--project", project.name, "--env-file", str(project.env_file), "--s3")
    assert up.returncode == 0, up.stdout + up.stderr
    assert inside("cpu-worker", "sh", "-c", "rm -rf /versions/*").returncode == 0
    return stack


def container(service: str, number: int = 1) -> str:
    return f"{NAME}-{service}-{number}"


def inside(service: str, *command: str, number: int = 1) -> subprocess.CompletedProcess:
    words = ["docker", "exec", container(service, number), *command]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def inspect(service: str) -> dict:
    return json.loads(subprocess.check_output(["docker", "inspect", container(service)]))[0]


def wait_until(is_so, seconds: float = 120.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(1)


def containers_of(service: str) -> list[str]:
    words = ["docker", "ps", "-q", "--filter", f"label=com.docker.compose.service={service}"]
    words += ["--filter", f"label=com.docker.compose.project={NAME}"]
    return subprocess.check_output(words, text=True).split()


def finish(run: Run, seconds: float = 420.0) -> str:
    give_up_at = time.monotonic() + seconds
    while (state := run.state()) in ("queued", "running"):
        assert time.monotonic() < give_up_at, run.rows()
        time.sleep(0.5)
    return state


def log_of(stack: ComposeStack, run: Run, task: str, attempt: int = 1) -> str:
    address = path("dags", run.dag_id, "dagRuns", run.run_id, "taskInstances", task)
    try:
        return json.dumps(stack.api.get(f"{address}/logs/{attempt}?full_content=true"))
    except NotFoundError:  # not begun
        return ""


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: the pages are not looked at")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    quiet += ["--disable-component-update", "--disable-sync", "--no-proxy-server"]
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def page(browser, stack, project):
    """A page that is logged in to Airflow."""
    page = browser.new_page(viewport={"width": 1400, "height": 850})
    page.set_default_timeout(60_000)
    page.goto(f"{stack.web_address}/auth/login/")
    page.fill("#username", "admin")
    page.fill("#password", environment.read(project.env_file)["ADMIN_PASSWORD"])
    page.click("input[type=submit]")
    page.wait_for_url(f"{stack.web_address}/**")
    return page
