"""The table of components, and the secrets that each process of the embedded stack may know."""

import configparser
import subprocess
from dataclasses import replace

import pytest

from deploy import generated
from deploy.components import CONTROL, METADATA, SERVERS, components
from deploy.embedded.processes import base_environment, init_command, programs
from deploy.embedded.state import REDIS_USERS, Launch, State
from deploy.embedded.supervisor import write_config
from deploy.files import read_env_file
from deploy.places import REPOSITORY
from fleet.contract import CONTRACT_PATH, queues

RUNNING = {name: each for name, each in components().items() if each.is_lasting}
EMBEDDED = {name: each for name, each in RUNNING.items() if each.is_embedded}
PLANE = {"webserver", "scheduler", "dag-processor", "housekeeper", "triggerer"}
WORKERS = {f"{queue}-worker" for queue in queues()}
SECRETS = sorted(
    set().union(*(each.secrets for each in EMBEDDED.values()))
    - {"POSTGRES_SUPERUSER_PASSWORD"}  # not in use here: the only database user is a superuser
)


@pytest.fixture
def state(tmp_path):
    state = State(tmp_path / "a state % with 100%")
    state.folder.mkdir()
    state.prepare()
    state.save_launch(Launch(web=1, flower=2, postgres=3, redis=4, supervisor=5, scheduled=True))
    return state


@pytest.mark.parametrize("daily", [False, True])
def test_the_control_plane_is_told_whether_the_training_is_daily(state, daily):
    state.save_launch(replace(state.launch(), daily=daily))
    told = {
        name: program.environment.get("MUSIC_GENRE_DAILY")
        for name, program in programs(state).items()
    }
    assert told == dict.fromkeys(told) | dict.fromkeys({*PLANE, "flower"}, str(int(daily)))


def test_the_embedded_stack_has_the_components_of_the_table(state):
    found = programs(state)
    assert set(found) == {"postgres", "redis", "flower"} | PLANE | WORKERS == set(EMBEDDED)
    assert {name: each.rank for name, each in found.items()} == {
        name: each.rank for name, each in EMBEDDED.items()
    }


def test_whoever_can_write_to_the_database_encrypts(state):
    """Without a Fernet key Airflow 3.3.2 stores connections in clear text and only logs a line."""
    for component in components().values():
        if component.rank == CONTROL:
            assert component.secrets >= METADATA or not METADATA & component.secrets


@pytest.mark.parametrize("secret", SECRETS)
def test_each_secret_is_known_to_those_of_the_table_and_no_other(state, secret):
    """Servers are left out: they read secrets from files that only the stack's user can read."""
    value = state.secrets().of(secret)
    knowing = {
        name
        for name, program in programs(state).items()
        if any(value in text for text in program.environment.values())
    }
    assert knowing == {
        name for name, each in EMBEDDED.items() if secret in each.secrets and each.rank != SERVERS
    }


def test_the_administrators_password_is_known_to_the_one_command_that_makes_the_user(state):
    password = state.secrets().admin_password
    assert password in init_command(state)[1].values()
    for program in programs(state).values():
        assert password not in program.environment.values()


@pytest.mark.parametrize("path", generated.GENERATED, ids=lambda path: path.name)
def test_what_follows_from_the_table_is_written(path):
    assert path.read_text() == generated.GENERATED[path](), "run `make docs`"


def test_redis_rights_follow_the_contract(tmp_path):
    contract = CONTRACT_PATH.read_text()
    larger = tmp_path / "queues.toml"
    larger.write_text(
        contract + contract[contract.index("[queues.gpu]") :].replace("gpu]", "huge]")
    )
    passwords = {f"REDIS_{user.upper()}_PASSWORD": user for user in REDIS_USERS}
    words = ["sh", REPOSITORY / "deploy" / "redis-users.sh", larger]
    users = subprocess.check_output(words, env={**base_environment(), **passwords}, text=True)
    worker, flower = (
        line for line in users.splitlines() if line.split()[1] in ("worker", "flower")
    )
    for queue in (*queues(), "huge"):
        assert f" ~{queue} ~{queue}??[369]" in worker
        assert f" %R~{queue} %R~{queue}??[369]" in flower


def test_links_begin_with_loopback_or_with_the_address_of_ones_own(state):
    def told() -> set[str]:
        found = programs(state).values()
        return {each.environment.get("AIRFLOW__API__BASE_URL", "") for each in found}

    assert told() == {"", "http://127.0.0.1:1"}  # Postgres and Redis get no address
    state.settings_path.write_text("AIRFLOW__API__BASE_URL=https://example.org/airflow\n")
    assert told() == {"", "https://example.org/airflow"}


def test_no_secret_is_on_a_command_line(state):
    words = [word for each in programs(state).values() for word in each.command]
    for secret in vars(state.secrets()).values():
        assert not any(secret in word for word in words)


def test_all_listen_on_loopback_alone(state):
    listed = programs(state)
    for name in ("webserver", "flower", "postgres"):
        assert any("127.0.0.1" in word for word in listed[name].command), name
    assert not any("0.0.0.0" in word for each in listed.values() for word in each.command)


def test_the_shells_environment_stays_outside(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "True")
    assert not {"AWS_SECRET_ACCESS_KEY", "AIRFLOW__CORE__LOAD_EXAMPLES"} & set(base_environment())


def test_supervisords_configuration_reads_back_and_holds_one_password(state):
    write_config(state)
    text = state.supervisor_config.read_text()
    config = configparser.ConfigParser()  # reads the doubled % as one %
    config.read_string(text)
    assert config["supervisord"]["pidfile"] == str(state.supervisor_pid)
    assert config["program:scheduler"]["stdout_logfile"] == str(state.logs / "scheduler.log")
    stopping = sorted(
        (name for name in config.sections() if name.startswith("group:")),
        key=lambda name: -int(config[name]["priority"]),
    )
    assert stopping == ["group:workers", "group:control", "group:servers"]
    members = [set(config[name]["programs"].split(",")) for name in stopping]
    assert members == [WORKERS, PLANE | {"flower"}, {"postgres", "redis"}]
    held = [name for name, secret in vars(state.secrets()).items() if secret in text]
    assert held == ["supervisor_password"]
    assert state.supervisor_config.stat().st_mode & 0o077 == 0


def test_settings_come_from_the_file_that_explains_them(tmp_path):
    path = tmp_path / "x.env"
    path.write_text("# why\nA=1=2\n\n  B=\n")
    assert read_env_file(path) == {"A": "1=2", "B": ""}
