"""Tests of the check that reads DAGS_GIT, against a Git server that requires a login."""

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
    assert asked(DAGS_GIT_REF=commit).found == f"{host}/dags.git has {commit}"


def test_a_wrong_repository_branch_or_token_is_refused(asked, host):
    assert "not found" in asked(f"{host}/other.git").found
    assert asked(f"{host}/other.git").remedy
    found = asked(DAGS_GIT_REF="develop")
    assert found.found.endswith("has no branch or tag develop")
    assert found.remedy == "correct DAGS_GIT_REF in .env"
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
        ({"DAGS_GIT_KEY_FILE": "/no/key"}, "DAGS_GIT_KEY_FILE: /no/key is not a file"),
        ({"DAGS_GIT": ""}, f"is not set, but COMPOSE_FILE contains {dags_git.FILE}"),
    ],
    ids=lambda each: next(iter(each.items())) if isinstance(each, dict) else "",
)
def test_variables_that_contradict_each_other_are_refused(asked, wrong, found):
    fault = dags_git.check({**FILES, "DAGS_GIT": "git@host:dags.git", **wrong})
    assert found in fault.found
    assert fault.remedy
    assert "token" not in fault.found
