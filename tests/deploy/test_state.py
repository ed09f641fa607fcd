import json
import socket

import pytest

from deploy.embedded.state import Launch, Secrets, State, choose_ports
from deploy.errors import DeployError
from deploy.files import write_private


def test_secrets_are_generated_once_kept_and_private(tmp_path):
    (tmp_path / "state").mkdir(mode=0o755)
    state = State(tmp_path / "state")
    state.prepare()
    first = state.secrets()
    state.prepare()
    assert state.secrets() == first
    assert state.secrets_path.stat().st_mode & 0o777 == 0o600
    assert state.folder.stat().st_mode & 0o777 == 0o700


def test_lost_secrets_of_a_database_are_not_made_anew(tmp_path):
    state = State(tmp_path)
    state.postgres.mkdir()
    with pytest.raises(DeployError, match=r"restore the file, or delete .* to start from scratch"):
        state.prepare()
    assert not state.secrets_path.exists()


def test_secrets_are_long_and_never_the_same():
    one, other = vars(Secrets.generate()), vars(Secrets.generate())
    assert len(set(one.values())) == len(one)
    assert not set(one.values()) & set(other.values())
    assert all(len(value) >= 32 for value in one.values())
    assert len(one["jwt_secret"]) >= 64


def test_a_stack_from_before_redis_had_users_is_stopped_and_started(tmp_path):
    state = State(tmp_path)
    state.prepare()
    now = json.loads(state.secrets_path.read_text())
    before = {name: value for name, value in now.items() if not name.startswith("redis_")}
    write_private(state.secrets_path, json.dumps(before | {"redis_password": "old"}))
    assert state.secrets().redis_worker_password == "old"  # for `make down-local`
    state.prepare()
    after = json.loads(state.secrets_path.read_text())
    assert {name: after[name] for name in before} == before
    of_redis = {after[name] for name in now if name.startswith("redis_")}
    assert len(of_redis) == 4
    assert "old" not in of_redis


def test_a_stack_from_before_the_housekeeper_gets_its_password(tmp_path):
    state = State(tmp_path)
    state.prepare()
    before = json.loads(state.secrets_path.read_text())
    older = {name: each for name, each in before.items() if "housekeeper" not in name}
    write_private(state.secrets_path, json.dumps(older))
    assert state.secrets().redis_housekeeper_password == ""
    state.prepare()
    after = json.loads(state.secrets_path.read_text())
    assert {name: after[name] for name in older} == older
    assert len(after["redis_housekeeper_password"]) >= 32


@pytest.mark.parametrize("text", ["", "{", "{}", '{"postgres_password": "x"}', "[]"])
def test_damaged_secrets_name_the_file_and_the_remedy(tmp_path, text):
    state = State(tmp_path)
    state.secrets_path.write_text(text)
    with pytest.raises(DeployError, match=r"secrets\.json cannot be read.*restore it, or delete"):
        state.secrets()


def test_a_private_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    (tmp_path / "file.new").write_text("left behind by a killed writer")
    write_private(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_ports_survive_the_command_that_chose_them(tmp_path):
    state = State(tmp_path)
    with pytest.raises(DeployError, match="no stack was started"):
        state.launch()
    launch = Launch(web=1, flower=2, postgres=3, redis=4, supervisor=5, scheduled=True)
    state.save_launch(launch)
    assert State(tmp_path).launch() == launch


def test_free_ports_are_free_and_different():
    ports = choose_ports(0, 0).values()
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_a_taken_port_is_refused_by_name():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DeployError, match=f"port {port} for flower is taken.*--flower-port"):
            choose_ports(0, port)


def test_a_folder_is_held_by_one_and_free_after_it(tmp_path):
    state = State(tmp_path)
    with state.lock():
        with pytest.raises(DeployError, match="another demo or start"):
            with state.lock():
                pass
    with state.lock():
        assert json.loads((tmp_path / "lock").read_text()) > 0


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("DAGS_GIT=https://host/x\nDAGS_DIR=/x\n", "sets DAGS_DIR and DAGS_GIT; delete one"),
        ("DAGS_GIT=https://user:t0k@host/x\n", "the address contains credentials"),
        ("DAGS_GIT=https://host/x\nDAGS_GIT_KEY_FILE=key\n", "key is not a file; write an abs"),
    ],
)
def test_wrong_settings_of_dags_are_refused(tmp_path, lines, fault):
    state = State(tmp_path)
    state.settings_path.write_text(lines)
    with pytest.raises(DeployError, match=fault) as caught:
        state.prepare()
    assert "t0k" not in str(caught.value)
