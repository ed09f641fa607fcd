"""Tests of the check that reads DAGS_GIT, against a Git server that requires a login."""

import os
import socket

import pytest

from deploy.containers import dags_git
from tests.fakes.git_server import LOGIN, Host, serving

FILES = {"COMPOSE_FILE": f"docker-compose.yml:{dags_git.FILE}"}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The address of a Git host with the repository dags.git, which has the branch main."""
    its = Host(tmp_path_factory.mktemp("host"))
    its.push("dag.py", "")
    with serving(its.bare.parent, LOGIN) as address:
        yield address


@pytest.fixture
def asked(host, tmp_path):
    """A function that runs the check for an address, with `login` in the credentials file."""

    def check(address: str = "", login: str = LOGIN, **more: str):
        for opened in (tmp_path, *tmp_path.parents[:2]):
            opened.chmod(0o755)
        file = tmp_path / "credentials"
        file.write_text(host.replace("://", f"://{login}@") + "\n")
        told = {"DAGS_GIT": address or f"{host}/dags.git", "DAGS_GIT_CREDENTIALS_FILE": str(file)}
        return dags_git.check({**FILES, **told, **more})

    return check


def test_nothing_is_said_without_a_repository():
    assert dags_git.check({}) == ("DAGS_GIT", "", "")


def test_a_repository_that_can_be_read_is_named(asked, host):
    assert asked() == ("DAGS_GIT", f"{host}/dags.git has main", "")
    commit = "0123456789" * 4
    found = f"{host}/dags.git can be read; commit {commit} is not checked"
    assert asked(DAGS_GIT_REF=commit).found == found


def test_a_wrong_repository_branch_or_token_is_refused(asked, host):
    assert "not found" in asked(f"{host}/other.git").found
    assert asked(f"{host}/other.git").remedy
    found = asked(DAGS_GIT_REF="develop")
    assert found.found.endswith("has no branch or tag develop")
    assert found.remedy == "correct DAGS_GIT_REF in .env"
    assert asked(DAGS_GIT_REF="ain").remedy
    found = asked(login="user:wr0ng")
    assert "Authentication failed" in found.found
    assert "wr0ng" not in found.found
    assert found.remedy


def test_a_host_that_is_away_or_silent_is_said_and_not_refused(asked, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/dags.git"
        monkeypatch.setattr(dags_git, "SECONDS", 1.0)
        silent = asked(address)
    away = asked(address)
    for found in (silent, away):
        assert found.remedy == ""
        assert f"{address} does not answer (" in found.found


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"DAGS_DIR": "/dags"}, "DAGS_DIR is set too"),
        ({"COMPOSE_FILE": ""}, f"COMPOSE_FILE lacks {dags_git.FILE}"),
        ({"DAGS_GIT": "https://user:token@host/dags.git"}, "credentials, which logs would show"),
        ({"DAGS_GIT": "https://token@host/dags.git"}, "credentials, which logs would show"),
        ({"DAGS_GIT": "/srv/dags.git"}, "is not the address of a Git repository"),
        ({"DAGS_GIT": "ext::sh -c id"}, "is not the address of a Git repository"),
        ({"DAGS_GIT": "https://user:to/ken@host/dags.git"}, "credentials, which logs would show"),
        ({"DAGS_GIT": "HTTPS://user:token@host"}, "credentials, which logs would show"),
        ({"DAGS_GIT": "ssh://user:token@host/dags.git"}, "credentials, which logs would show"),
        ({"DAGS_GIT_KEY_FILE": "/no/key"}, "but DAGS_GIT_KNOWN_HOSTS_FILE is not"),
        ({"DAGS_GIT_CREDENTIALS_FILE": "/no/file"}, "/no/file: No such file or directory"),
        ({"DAGS_GIT": ""}, f"is not set, but COMPOSE_FILE contains {dags_git.FILE}"),
    ],
    ids=lambda each: next(iter(each.items())) if isinstance(each, dict) else "",
)
def test_variables_that_contradict_each_other_are_refused(asked, wrong, found):
    fault = dags_git.check({**FILES, "DAGS_GIT": "git@host:dags.git", **wrong})
    assert found in fault.found
    assert fault.remedy
    assert "token" not in fault.found


def test_what_only_this_user_has_does_not_count(asked, host, tmp_path, monkeypatch):
    """The container has no configuration of the user, so the check must not use it either."""
    (tmp_path / ".gitconfig").write_text(f"[credential]\nhelper = store --file {tmp_path}/own\n")
    (tmp_path / "own").write_text(host.replace("://", f"://{LOGIN}@") + "\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert asked(DAGS_GIT_CREDENTIALS_FILE="").remedy


def test_a_file_that_the_container_cannot_read_is_refused(asked, tmp_path):
    closed = tmp_path / "closed"
    closed.write_text("x")
    closed.chmod(0o600)
    found = asked(DAGS_GIT_CREDENTIALS_FILE=str(closed))
    assert found.found.endswith(f"the container's user 50000 cannot read {closed}")
    os.chown(closed, 50000, 50000)
    assert "cannot read" not in asked(DAGS_GIT_CREDENTIALS_FILE=str(closed)).found
