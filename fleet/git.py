"""Git commands that never ask a question and give up when the host is silent."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_SETTINGS = {
    "core.hooksPath": os.devnull,
    "http.lowSpeedLimit": "1",
    "http.lowSpeedTime": "30",
    "init.defaultBranch": "main",
    "advice.detachedHead": "false",
    # Large files (Git LFS) stay pointers: the filter would need another program and another login.
    "filter.lfs.smudge": "",
    "filter.lfs.process": "",
    "filter.lfs.required": "false",
}
_SSH = (
    *("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"),
    *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=2"),
)
_AWAY = re.compile(
    r"Could ?n[o']t (resolve|connect)|Failed to connect|Connection (refused|reset|closed)|timed out"
    r"|no answer|unreachable|No route to host|Operation too slow|early EOF|unexpected disconnect"
    r"|Temporary failure in name resolution|returned error: (429|5\d\d)"
)
"""Matches Git's messages that the host does not answer or refuses everyone for now (429, 5xx)."""
_ADDRESS = re.compile(r"(https?|ssh)://[^\s]+|[\w.-]+@[\w.-]+:[^\s]+")
_WITH_CREDENTIALS = re.compile(
    r"https?://[^/]*@|https?://[^/]*:[^@]*@|[a-z+]+://[^/]*:[^@]*@|.*@.*@", re.I
)
_VAGUE = "Could not read from remote repository"
"""Git's words after any fault of SSH; the line before has SSH's own words."""
_ALONE = {"HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


class Access(NamedTuple):
    """Paths of the files with which Git logs in to a host; an empty path means no file."""

    credentials: str = ""
    """A file with lines `https://user:token@host`."""
    key: str = ""
    """A file with a private SSH key."""
    known_hosts: str = ""
    """A file with the host's `known_hosts` lines."""

    def existing(self) -> "Access":
        """Leave out missing and empty files; Compose mounts /dev/null if no file is set."""
        return Access(*(path if _has_content(path) else "" for path in self))


def fault_of(address: str) -> tuple[str, str] | None:
    """Return what is wrong with the address of a repository, and the remedy; None if nothing.

    The text names no credentials that the address contains.
    """
    if _WITH_CREDENTIALS.match(address):
        remedy = "remove them, and write https://user:token@host into a credentials file"
        return "the address contains credentials, which logs would show", remedy
    if not _ADDRESS.fullmatch(address):
        remedy = "set it to https://host/repository, ssh://host/repository or git@host:repository"
        return f"{address!r} is not the address of a Git repository", remedy
    return None


def _has_content(path: str) -> bool:
    return bool(path) and Path(path).is_file() and Path(path).stat().st_size > 0


def command(access: Access, *words: str) -> list[str]:
    """Return a Git command with settings that override the user's own."""
    settings = [f"{name}={value}" for name, value in _SETTINGS.items()]
    if access.credentials:
        # The empty value disables the user's own helpers. Our helper only reads (`get`).
        file = shlex.quote(access.credentials)
        helper = f'!f() {{ test "$1" != get || git credential-store --file {file} get; }}; f'
        settings += ["credential.helper=", f"credential.helper={helper}"]
    return ["git", *(word for setting in settings for word in ("-c", setting)), *words]


def environment(
    access: Access, inherited: Mapping[str, str] = os.environ, *, alone: bool = False
) -> dict[str, str]:
    """Return the environment of a Git command: no prompts, messages in English, SSH options.

    Args:
        access: how to log in.
        inherited: the environment to begin with.
        alone: whether Git may use only `access`, as in a container: no configuration, key or proxy
            of the user.
    """
    if alone:
        inherited = {"PATH": inherited.get("PATH", os.defpath)} | _ALONE
        access = access._replace(known_hosts=access.known_hosts or os.devnull)
    ssh = [*_SSH, *(["-F", "none"] if alone else [])]
    if access.key:
        ssh += ["-i", access.key, "-o", "IdentitiesOnly=yes"]
    if access.known_hosts:
        ssh += ["-o", f"UserKnownHostsFile={access.known_hosts}"]
    own = {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true"}
    # Git sets variables such as GIT_DIR for its hooks; they would name another repository.
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith("GIT_") or name in _ALONE
    }
    return kept | own | {"GIT_SSH_COMMAND": shlex.join(ssh)}


def reason(said: str) -> str:
    """Return the line of Git's output that says why the command failed."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("fatal:", "error:")) and _VAGUE not in line]
    by_ssh = [line for line in lines if _VAGUE not in line] if _VAGUE in said else []
    first = (told or by_ssh or lines[-1:] or ["Git printed nothing"])[0]
    return re.sub(r"^(fatal|error): ", "", first)


def is_away(said: str) -> bool:
    """Whether Git failed because the host does not answer, so that a later attempt can succeed."""
    return bool(_AWAY.search(said))
