"""A repository behind a real SSH server, opened with a deploy key such as Git hosts issue."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Run

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(
    SSHD is None, reason="no SSH server is installed; apt-get install openssh-server"
)
READ_ONLY = """#!/bin/sh
case "$SSH_ORIGINAL_COMMAND" in git-receive-pack*)
    echo 'ERROR: The key you are authenticating with has been marked as read only.' >&2
    exit 1 ;;
esac
exec sh -c "$SSH_ORIGINAL_COMMAND"
"""
"""The answer of a well-known Git host to a push with a deploy key that may only read."""


class Host(NamedTuple):
    folder: Path
    address: str

    def options(self, key: str = "key", hosts: str = "known_hosts") -> list[str]:
        files = ["--git-key", self.folder / key, "--git-known-hosts", self.folder / hosts]
        places = ["--remote", self.folder / "remote", "--artifacts", self.folder / "store"]
        return ["--git", self.address, *map(str, [*files, *places])]


def make_key(file: Path) -> str:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(file)]
    subprocess.run(words, check=True)
    return file.with_suffix(".pub").read_text()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    port = free_port()
    own, key, read_only = (make_key(tmp_path / name) for name in ("host", "key", "read_only"))
    make_key(tmp_path / "stranger")
    (tmp_path / "command").write_text(READ_ONLY)
    (tmp_path / "command").chmod(0o755)
    (tmp_path / "allowed").write_text(f'{key}command="{tmp_path / "command"}" {read_only}')
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {own}")
    (tmp_path / "no_hosts").write_text(f"[127.0.0.1]:{port} {key}")
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "hosted.git"], check=True)
    settings = {"ListenAddress": f"127.0.0.1:{port}", "HostKey": tmp_path / "host"}
    settings |= {"AuthorizedKeysFile": tmp_path / "allowed", "PidFile": tmp_path / "pid"}
    settings |= {"StrictModes": "no", "UsePAM": "no", "PasswordAuthentication": "no"}
    lines = [f"{name} {value}" for name, value in settings.items()]
    (tmp_path / "sshd_config").write_text("\n".join(lines) + "\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd needs this folder
    server = subprocess.Popen(
        [str(SSHD), "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port)
        yield Host(tmp_path, f"ssh://127.0.0.1:{port}{tmp_path}/hosted.git")
    finally:
        server.terminate()
        server.wait()


def wait_for(port: int) -> None:
    give_up_at = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < give_up_at, "the SSH server did not start"
            time.sleep(0.05)


def test_a_deploy_key_publishes(run: Run, trained: Path, host: Host) -> None:
    done = run("publish", "--run", trained, *host.options())
    assert done.code == 0, done.stderr
    tags = ["git", "-C", str(host.folder / "hosted.git"), "tag", "--list"]
    listed = subprocess.run(tags, check=True, capture_output=True, text=True).stdout
    assert listed.split() == [done.result["tag"]]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("read_only",), "the repository is read-only"),
        (("stranger",), "the SSH key is refused"),
        (("key", "no_hosts"), "the host's SSH key is not among the known hosts"),
    ],
    ids=["read-only", "unknown", "other-host"],
)
def test_a_key_that_does_not_open_it_is_one_line_before_any_work(
    run: Run, trained: Path, host: Host, files: tuple[str, ...], words: str
) -> None:
    refused = run("publish", "--run", trained, *host.options(*files))
    assert refused.code == 65, refused.stderr
    assert words in refused.error
    assert not (host.folder / "remote" / "files").exists()


def test_a_key_that_this_user_may_not_read_is_named(
    run: Run, trained: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key is unreadable, for example, if its file does not belong to the container's user."""
    # The tests may run as root, whom no file mode stops.
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused = run("publish", "--run", trained, *host.options())
    assert refused.code == 64
    assert f"{host.folder / 'key'} is not readable by user {os.getuid()}" in refused.stderr
