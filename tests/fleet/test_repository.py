"""DAG files from a Git repository, fetched over HTTP from a server that requires a token."""

import logging
import os
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest

from fleet import git
from fleet.bundles import bundle, repository
from fleet.bundles.bundle import SnapshotBundle
from fleet.bundles.repository import Place, Repository
from fleet.bundles.snapshots import File, Snapshots
from tests.fakes.git_server import LOGIN, Host, serving

FILE = File(b"# 1\n")


@pytest.fixture
def host(tmp_path):
    its = Host(tmp_path)
    its.push("of/dag.py", FILE.content.decode())
    return its


@pytest.fixture
def access(tmp_path):
    """A function that writes a file of credentials for an address."""

    def write(address: str, login: str = LOGIN) -> git.Access:
        file = tmp_path / "credentials with space"
        file.write_text(address.replace("://", f"://{login}@") + "\n")
        return git.Access(credentials=str(file))

    return write


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    for name in ("EVERY_SECONDS", "REFUSED_SECONDS"):
        monkeypatch.setattr(repository, name, 0.0)


def wait_for(is_so, seconds: float = 20.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def test_a_push_arrives_and_only_the_named_folder_counts(tmp_path, host, access):
    with serving(host.bare.parent, LOGIN) as address:
        kept = tmp_path / "kept"
        found = Repository(Place(f"{address}/dags.git", "main", "of"), access(address), kept)
        assert found.state() is None
        assert found.tree() == ({}, {})
        wait_for(found.state)
        assert found.tree() == ({"dag.py": FILE}, {})
        first = found.state()
        host.push("of/other.py", "# 2\n")
        host.push("elsewhere.py", "# 3\n")
        wait_for(lambda: found.state() != first)
        assert sorted(found.tree()[0]) == ["dag.py", "other.py"]
    assert [path.name for path in kept.iterdir()] == ["fetched.tar"]


@pytest.mark.parametrize("ref", ["branch", "v1", "commit"])
def test_a_branch_a_tag_or_a_commit_is_followed(tmp_path, host, access, ref):
    host.git("tag", "-am", "release", "v1")
    host.git("push", "-q", "origin", "v1", "HEAD:refs/heads/branch")
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=host.work, text=True).strip()
    host.push("of/later.py", "")
    with serving(host.bare.parent, LOGIN) as address:
        place = Place(f"{address}/dags.git", commit if ref == "commit" else ref)
        found = Repository(place, access(address), tmp_path / "kept")
        wait_for(found.state)
        assert found.state() == commit
        assert list(found.tree()[0]) == ["of/dag.py"]


def test_a_host_that_is_away_is_one_line_and_the_files_stay(tmp_path, host, access, caplog):
    caplog.set_level(logging.INFO)
    with serving(host.bare.parent, LOGIN) as address:
        found = Repository(Place(f"{address}/dags.git"), access(address), tmp_path / "kept")
        wait_for(found.state)
        first = found.state()
    wait_for(lambda: found.state() and caplog.messages)
    for _ in range(20):
        assert found.state() == first
        time.sleep(0.05)
    (line,) = caplog.messages
    assert line.startswith(f"error: DAGs from {address}/dags.git main: unable to access")
    assert line.endswith("; the DAGs in force stay")
    assert found.tree()[0] == {"of/dag.py": FILE}


def test_a_host_that_answers_again_is_followed_again(tmp_path, host, access, caplog):
    caplog.set_level(logging.INFO)
    hidden = host.bare.with_name("hidden.git")
    with serving(host.bare.parent, LOGIN) as address:
        found = Repository(Place(f"{address}/dags.git"), access(address), tmp_path / "kept")
        host.bare.rename(hidden)
        wait_for(lambda: found.state() or caplog.messages)
        assert "not found" in caplog.messages[0]
        hidden.rename(host.bare)
        wait_for(found.state)
    assert caplog.messages[1:] == [f"DAGs from {address}/dags.git main: fetched again"]


@contextmanager
def silent():
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_silent_host_holds_up_nobody(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(repository, "FETCH_SECONDS", 1.0)
    monkeypatch.setattr(repository, "EVERY_SECONDS", 60.0)
    with silent() as address:
        found = Repository(Place(f"{address}/dags.git"), git.Access(), tmp_path)
        slowest = 0.0
        while not caplog.messages:
            began = time.monotonic()
            assert found.state() is None
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.02)
    assert "not finished within 1 s" in caplog.messages[0]
    assert slowest < 1.0  # a fetch that is waited for takes longer
    fetches = subprocess.run(["pgrep", "-f", address], capture_output=True, text=True)
    assert fetches.stdout == ""


def test_a_refused_token_is_one_line_that_does_not_name_it(tmp_path, host, access, caplog):
    with serving(host.bare.parent, LOGIN) as address:
        wrong = access(address, "user:wr0ng")
        found = Repository(Place(f"{address}/dags.git"), wrong, tmp_path / "kept")
        wait_for(lambda: found.state() or caplog.messages)
    assert "Authentication failed" in caplog.messages[0]
    assert "wr0ng" not in caplog.text


def test_what_a_killed_fetch_left_disturbs_no_later_one(tmp_path, host, access):
    """In a repository that is kept, a leftover lock file would stop every later fetch."""
    kept = tmp_path / "kept"
    (kept / ".fetch-killed").mkdir(parents=True)
    with serving(host.bare.parent, LOGIN) as address:
        found = Repository(Place(f"{address}/dags.git"), access(address), kept)
        wait_for(found.state)
    assert [path.name for path in kept.iterdir()] == ["fetched.tar"]


def test_no_other_repository_is_touched(tmp_path, host, access):
    """Git looks for a repository in the folders above; the embedded stack's is in a checkout."""
    checkout = Host(tmp_path / "checkout")
    checkout.push("mine.py", "")
    with serving(host.bare.parent, LOGIN) as address:
        kept = checkout.work / "kept"
        found = Repository(Place(f"{address}/dags.git"), access(address), kept)
        wait_for(found.state)
    said = subprocess.check_output(["git", "status", "--short"], cwd=checkout.work, text=True)
    assert said == "?? kept/\n"
    assert (checkout.work / "mine.py").exists()


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ({"folder": "elsewhere"}, "has no folder elsewhere"),
        ({"folder": "../of"}, "has no folder ../of"),
        ({"folder": "/etc"}, "has no folder /etc"),
        ({"folder": "of/dag.py"}, "has no folder of/dag.py"),
        ({"ref": "develop"}, "has no branch or tag develop"),
        ({"ref": "ain"}, "has no branch or tag ain"),
        ({"ref": "ma*"}, "has no branch or tag ma*"),
    ],
)
def test_a_wrong_folder_or_branch_is_one_line(tmp_path, host, access, caplog, place, fault):
    with serving(host.bare.parent, LOGIN) as address:
        where = Place(f"{address}/dags.git", **{"ref": "main", **place})
        found = Repository(where, access(address), tmp_path / "kept")
        wait_for(lambda: found.state() or caplog.messages)
    assert fault in caplog.messages[0]


def test_links_lead_to_files_of_the_repository_alone(tmp_path, host, access):
    (host.work / "of" / "secret.py").symlink_to("/etc/passwd")
    (host.work / "of" / "above.py").symlink_to("../../../etc/passwd")
    (host.work / "of" / "same.py").symlink_to("dag.py")
    host.push("of/.hidden/file.py", "")
    with serving(host.bare.parent, LOGIN) as address:
        found = Repository(Place(f"{address}/dags.git"), access(address), tmp_path / "kept")
        wait_for(found.state)
    files, faults = found.tree()
    assert files == {"of/dag.py": FILE, "of/same.py": FILE}
    assert sorted(faults) == ["of/above.py", "of/secret.py"]


@pytest.fixture
def of_git(tmp_path, host, access, monkeypatch):
    """A function that makes a bundle: the dag-processor's with an address, a worker's without."""
    monkeypatch.setenv("FLEET_SNAPSHOTS", str(tmp_path / "snapshots"))
    for name in ("in_force", "in_use"):
        monkeypatch.setattr(
            bundle, name, lambda _, name=name: {"in_force": {}, "in_use": set()}[name]
        )

    def make(address: str = "", **options) -> SnapshotBundle:
        monkeypatch.setenv("GIT_FOR_DAGS", address and f"{address}/dags.git")
        if address:
            credentials = access(address).credentials
            monkeypatch.setenv("GIT_FOR_DAGS_CREDENTIALS", credentials)
        return SnapshotBundle(name="own", variable="NO_FOLDER", git="GIT_FOR_DAGS", **options)

    return make


def refreshed(its: SnapshotBundle) -> str:
    its.refresh()
    return getattr(its.get_current_version(), "version", "")


def test_a_run_keeps_the_version_with_which_it_began(tmp_path, host, of_git):
    with serving(host.bare.parent, LOGIN) as address:
        processor = of_git(address)
        assert processor.supports_versioning
        processor.initialize()
        wait_for(lambda: refreshed(processor) and (processor.path / "of").exists())
        first = refreshed(processor)
        host.push("of/dag.py", "# changed\n")
        wait_for(lambda: refreshed(processor) != first)
    worker, newer = of_git(version=first), of_git(version=refreshed(processor))
    for each in (worker, newer):
        each.initialize()
    assert (worker.path / "of/dag.py").read_text() == "# 1\n"
    assert (newer.path / "of/dag.py").read_text() == "# changed\n"


def test_a_new_process_uses_the_last_fetch_while_the_host_is_away(tmp_path, host, of_git):
    kept = Snapshots(tmp_path / "snapshots" / "own").publish({"dag.py": FILE}, "abc")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    processor = of_git(nobody)
    processor.initialize()
    for _ in range(20):
        assert refreshed(processor) == kept.name
        time.sleep(0.02)


def test_a_version_that_was_deleted_gives_way_to_the_newest(tmp_path, of_git, caplog):
    newest = Snapshots(tmp_path / "snapshots" / "own").publish({"dag.py": FILE})
    worker = of_git(version="2026-01-01T00-00-00.000000-abc")
    worker.initialize()
    assert worker.path == newest
    assert "was deleted; using the newest version" in caplog.text


def test_versions_in_use_are_kept(tmp_path):
    snapshots = Snapshots(tmp_path)
    folders = [snapshots.publish({"dag.py": FILE}, str(number)) for number in range(3)]
    snapshots.prune(-1, but={folders[0].name})
    assert sorted(tmp_path.glob("2*")) == [folders[0], folders[2]]


@pytest.mark.parametrize(
    ("said", "reason", "is_away"),
    [
        ("remote: x\nfatal: repository 'a' not found\n", "repository 'a' not found", False),
        ("fatal: unable to access 'a': Could not resolve host: b", None, True),
        ("fatal: unable to access 'a': The requested URL returned error: 429", None, True),
        (
            "git@host: Permission denied (publickey).\n"
            "fatal: Could not read from remote repository.\n",
            "git@host: Permission denied (publickey).",
            False,
        ),
        (
            "ssh: connect to host h port 22: Connection refused\n"
            "fatal: Could not read from remote repository.\n",
            "ssh: connect to host h port 22: Connection refused",
            True,
        ),
    ],
)
def test_the_reason_is_the_line_that_names_it(said, reason, is_away):
    assert git.reason(said) == (reason or said.removeprefix("fatal: "))
    assert git.is_away(said) == is_away


def test_git_asks_nobody_and_takes_no_hooks_variables():
    found = git.environment(git.Access(key="/a key"), {**os.environ, "GIT_DIR": "/other"})
    assert "GIT_DIR" not in found
    assert found["GIT_TERMINAL_PROMPT"] == "0"
    assert "-i '/a key' -o IdentitiesOnly=yes" in found["GIT_SSH_COMMAND"]
