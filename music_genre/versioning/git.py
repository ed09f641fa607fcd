"""Run Git; if Git fails, report the reason in one line."""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Final

from music_genre.errors import InputError, MusicGenreError, TemporaryError
from music_genre.versioning.access import Access

BRANCH: Final = "main"
"""First branch of a repository that has no branch yet."""
SECONDS: Final = 300.0
"""Time limit of one call of Git, in seconds."""
NAME: Final = "music-genre"
OURS: Final = {
    "commit.gpgsign": "false",
    "tag.gpgsign": "false",
    "core.hooksPath": os.devnull,
    "http.lowSpeedLimit": "1",
    "http.lowSpeedTime": "30",
    "advice.detachedHead": "false",
    "init.defaultBranch": BRANCH,
}
"""Git settings that override the user's own."""
OVERTAKEN: Final = (
    *("[rejected]", "cannot lock ref", "failed to update ref", "incorrect old value"),
    *("reference already exists", "failed to lock", "atomic push failed"),
)
"""Words in Git's output if another push came first."""
AWAY: Final = (
    *("Could not resolve host", "Connection refused", "timed out", "Connection reset"),
    *("Network is unreachable", "early EOF", "error: 5", "No route to host", "Operation too slow"),
    *("Couldn't connect", "Could not connect", "Failed to connect"),
    *("Temporary failure in name resolution", "No space left", "unexpected disconnect"),
)
"""Words in Git's output if the repository cannot be reached or has no space left."""
KNOWN: Final = {
    "Authentication failed": "the user or token is refused",
    "could not read Username": "the repository requires a user and a token",
    "are too open": "the SSH key file is readable by users other than its owner",
    "Permission denied (publickey": "the SSH key is refused",
    "Host key verification failed": "the host's SSH key is not among the known hosts",
    "Permission denied": "the repository's files are not writable",
    "insufficient permission": "the repository's files are not writable",
    "Read-only file system": "the repository's files are not writable",
    "unable to create temporary object directory": "the repository's files are not writable",
    "The requested URL returned error: 403": "the token lacks permission",
    "access denied": "the repository is read-only",
    "marked as read only": "the repository is read-only",
    "does not have write access": "the repository is read-only",
    "does not appear to be a git repository": "there is no repository",
    "not found": "there is no repository, or it is not visible to this user",
    "hook declined": "the repository's own rules refuse the commit",
    "protected branch": "the repository's own rules refuse the commit",
}
"""Words in Git's output -> the reason to report."""
ANOTHERS: Final = {
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_PREFIX"),
}
"""Environment variables that Git does not inherit: they would make it use another repository.

Git sets these variables for the hooks that it runs, for example.
"""
SSH: Final = (
    *("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"),
    *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=2"),
)
REMEDY: Final = "check the address, and the credentials file or the SSH key"


class OvertakenError(TemporaryError):
    """Another push reached the repository before this one."""


def run(access: Access | None, *words: str, folder: Path | None = None) -> str:
    """Run Git and return its standard output.

    Raises:
        OvertakenError: another push came first.
        TemporaryError: the repository cannot be reached, or Git took longer than `SECONDS`.
        InputError: Git is not installed, or refuses the command; the message says why.
    """
    command = ["git", *_settings(access), *words]
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            env=_environment(access),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )
    except FileNotFoundError:
        raise InputError("git is not installed on this machine; install it") from None
    except subprocess.TimeoutExpired:
        raise TemporaryError(
            f"git {words[0]}: took longer than {SECONDS:.0f} s; try again"
        ) from None
    if ended.returncode:
        where = access.git if access else words[-1]
        said = (ended.stderr + ended.stdout).decode("utf-8", "replace")
        raise _fault(f"{where}: git {words[0]}", said)
    return ended.stdout.decode("utf-8", "replace")


def _settings(access: Access | None) -> list[str]:
    settings = [f"{name}={value}" for name, value in OURS.items()]
    if access and access.credentials:
        # The empty value disables the user's own credential helpers. Our helper only answers "get";
        # it stores nothing.
        settings += [
            "credential.helper=",
            f'credential.helper=!f() {{ test "$1" != get || '
            f'git credential-store --file "{access.credentials}" get; }}; f',
        ]
    return [word for setting in settings for word in ("-c", setting)]


def _environment(access: Access | None) -> dict[str, str]:
    author = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", NAME), ("EMAIL", f"{NAME}@localhost"))
    }
    fixed = {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true"}
    inherited = {name: value for name, value in os.environ.items() if name not in ANOTHERS}
    if access and access.key:
        hosts = ["-o", f"UserKnownHostsFile={access.known_hosts}"] if access.known_hosts else []
        words = [*SSH, "-i", str(access.key), "-o", "IdentitiesOnly=yes", *hosts]
        fixed["GIT_SSH_COMMAND"] = shlex.join(words)
    return {"GIT_SSH_COMMAND": shlex.join(SSH), **author, **inherited, **fixed}


def _fault(what: str, said: str) -> MusicGenreError:
    """Turn Git's output into an error with a one-line message."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line for line in lines if "fatal:" in line or "error:" in line]
    first = (told or lines[-1:] or ["Git printed nothing"])[0]
    shown = first.partition(": ")[2] or first
    for words, meaning in KNOWN.items():
        if words in said:
            return InputError(f"{what}: {meaning} ({shown}); {REMEDY}")
    if any(words in said for words in AWAY):
        return TemporaryError(
            f"{what}: the repository cannot be reached or has no space left ({shown}); check the "
            "network and the disk"
        )
    if any(words in said for words in OVERTAKEN):
        return OvertakenError(f"{what}: {shown}")
    return InputError(f"{what}: {shown}; {REMEDY}")
