"""Use besides training: a task's own package, a full /tmp, links, a live log, connections."""

import subprocess
import zipfile

import pytest
from conftest import NAME, container, finish, inside, inspect, log_of, wait_until

from deploy.airflow_api import path
from deploy.components import METADATA, components
from deploy.demo import trigger

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def wheels(stack, tmp_path_factory) -> None:
    """Put one Python package into a folder that the workers can read."""
    wheel = tmp_path_factory.mktemp("wheels") / "of_users-1.0-py3-none-any.whl"
    told = "of_users-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("of_users.py", "ANSWER = 42\n")
        file.writestr(f"{told}/METADATA", "Metadata-Version: 2.1\nName: of-users\nVersion: 1.0\n")
        file.writestr(
            f"{told}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{told}/RECORD", "")
    inside("cpu-worker", "mkdir", "-p", "/artifacts/wheels")
    write = ["docker", "exec", "-i", container("cpu-worker"), "sh", "-c"]
    write += [f"cat >/artifacts/wheels/{wheel.name}"]
    subprocess.run(write, input=wheel.read_bytes(), check=True)


@pytest.fixture(scope="module")
def used(stack, wheels):
    """One run of the DAG of_users; one task's log is read while the task runs."""
    run = trigger(stack, {}, "of_users")
    watched = path("dags", "of_users", "dagRuns", run.run_id, "taskInstances", "is_watched")
    wait_until(lambda: stack.api.get(watched)["state"] == "running")
    wait_until(lambda: "watch me" in log_of(stack, run, "is_watched"))
    assert stack.api.get(watched)["state"] == "running"
    finish(run)
    return run


def test_a_task_installs_a_package_of_its_own(stack, used):
    assert used.xcom("own_package") == 42, log_of(stack, used, "own_package")


def test_a_task_that_fills_tmp_fails_and_its_worker_lives(stack, used):
    states = {row.name: row.state for row in used.rows()}
    assert states["fills_tmp"] == "failed"
    assert "No space left on device" in log_of(stack, used, "fills_tmp")
    found = inspect("cpu-worker")
    assert found["RestartCount"] == 0
    assert not found["State"]["OOMKilled"]


def test_links_begin_with_the_address_that_people_use(stack, used):
    assert used.xcom("links").startswith(f"{stack.public_address}/dags/of_users/")
    for service, component in components().items():
        if component.command[:1] in (("airflow",), ("python",)) and not component.profile:
            environment = "\n".join(inspect(service)["Config"]["Env"])
            assert f"AIRFLOW__API__BASE_URL={stack.public_address}\n" in environment + "\n", service


def test_a_look_at_a_running_tasks_log_leaves_none_in_the_webservers(stack, used):
    said = subprocess.run(
        ["docker", "logs", container("webserver")], capture_output=True, text=True
    )
    assert "/execution/" in said.stdout + said.stderr
    assert "Could not read served logs" not in said.stdout + said.stderr


WRITERS = sorted(
    name
    for name, each in components().items()
    if each.secrets & METADATA and each.rank == "control"
)


@pytest.fixture(scope="module")
def stored(stack, project) -> dict[str, tuple[bool, str]]:
    """Service → whether its connection is stored encrypted, and the password as stored.

    Each service adds one connection, from its own container.
    """
    adding = {service: add_connection(service, project) for service in WRITERS}
    for service, process in adding.items():
        assert process.wait(120) == 0, service
    query = "SELECT conn_id, is_encrypted, password FROM connection"
    words = ["psql", "-qtAX", "-F", " ", "-U", "airflow", "-d", "airflow", "-c", query]
    lines = [line.split(" ") for line in inside("postgres", *words).stdout.splitlines()]
    return {name: (is_encrypted == "t", password) for name, is_encrypted, password in lines}


def add_connection(service: str, project) -> subprocess.Popen:
    words = ["airflow", "connections", "add", service, "--conn-uri", "smtp://u:in-clear@h:25"]
    in_container = ["docker", "exec", container(service), *words]
    if not components()[service].is_lasting:
        compose = ["docker", "compose", "--env-file", str(project.env_file), "-p", NAME]
        in_container = [*compose, "run", "--rm", "--no-deps", service, *words]
    return subprocess.Popen(in_container, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("service", WRITERS)
def test_a_connection_is_encrypted_wherever_it_is_added(stored, service):
    is_encrypted, password = stored[service]
    assert is_encrypted
    assert "in-clear" not in password
