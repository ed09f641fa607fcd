"""What each process of the embedded stack may know."""

import configparser
from dataclasses import replace

import pytest

from deploy.embedded.processes import base_environment, components, init_command
from deploy.embedded.state import Launch, State
from deploy.embedded.supervisor import write_config
from deploy.files import read_env_file
from fleet.contract import queues

CONTROL = {"webserver", "scheduler", "dag-processor", "triggerer"}


@pytest.fixture
def state(tmp_path):
    state = State(tmp_path / "a state % with 100%")
    state.folder.mkdir()
    state.prepare()
    state.save_launch(Launch(web=1, flower=2, postgres=3, redis=4, supervisor=5, scheduled=True))
    return state


def knowing(state, secret: str) -> set[str]:
    return {
        name
        for name, component in components(state).items()
        if any(secret in value for value in component.environment.values())
    }


@pytest.mark.parametrize("daily", [False, True])
def test_the_control_plane_is_told_whether_the_training_is_daily(state, daily):
    state.save_launch(replace(state.launch(), daily=daily))
    told = {
        name: component.environment.get("MUSIC_GENRE_DAILY")
        for name, component in components(state).items()
    }
    assert told == dict.fromkeys(told) | dict.fromkeys(CONTROL, str(int(daily)))


def test_there_is_a_worker_for_each_queue(state):
    workers = {name for name in components(state) if name.endswith("-worker")}
    assert workers == {f"{queue}-worker" for queue in queues()}


def test_each_secret_is_known_to_those_who_need_it_and_no_other(state):
    secrets = state.secrets()
    workers = {f"{queue}-worker" for queue in queues()}
    assert knowing(state, secrets.postgres_password) == CONTROL
    assert knowing(state, secrets.jwt_secret) == CONTROL
    assert knowing(state, secrets.fernet_key) == CONTROL
    assert knowing(state, secrets.api_secret_key) == CONTROL
    assert knowing(state, secrets.redis_password) == CONTROL | workers | {"flower"}
    assert knowing(state, secrets.flower_password) == {"flower"}
    assert knowing(state, secrets.admin_password) == set()
    assert secrets.admin_password in init_command(state)[1].values()


def test_no_secret_is_on_a_command_line(state):
    words = [word for each in components(state).values() for word in each.command]
    for secret in vars(state.secrets()).values():
        assert not any(secret in word for word in words)


def test_all_listen_on_loopback_alone(state):
    listed = components(state)
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
    config = configparser.ConfigParser()  # undoes the doubled %
    config.read_string(text)
    assert config["supervisord"]["pidfile"] == str(state.supervisor_pid)
    assert config["program:scheduler"]["stdout_logfile"] == str(state.logs / "scheduler.log")
    stopping = sorted(
        (name for name in config.sections() if name.startswith("group:")),
        key=lambda name: -int(config[name]["priority"]),
    )
    assert stopping == ["group:workers", "group:control", "group:servers"]
    members = [set(config[name]["programs"].split(",")) for name in stopping]
    assert members == [{"cpu-worker", "gpu-worker"}, CONTROL | {"flower"}, {"postgres", "redis"}]
    held = [name for name, secret in vars(state.secrets()).items() if secret in text]
    assert held == ["supervisor_password"]
    assert state.supervisor_config.stat().st_mode & 0o077 == 0


def test_settings_come_from_the_file_that_explains_them(tmp_path):
    path = tmp_path / "x.env"
    path.write_text("# why\nA=1=2\n\n  B=\n")
    assert read_env_file(path) == {"A": "1=2", "B": ""}
