"""Checks of DAGS_GIT, the Git repository of the user's own DAGs."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from deploy.containers.env_checks import Finding
from fleet import git

SECONDS = 20.0
"""How long to wait for the Git host."""
FILE = "deploy/compose/dags-git.yml"
FILES = [f"DAGS_GIT_{name}_FILE" for name in ("CREDENTIALS", "KEY", "KNOWN_HOSTS")]
_URL = re.compile(r"(https?|ssh)://[^\s]+|[\w.-]+@[\w.-]+:[^\s]+")
_WITH_PASSWORD = re.compile(r"https?://[^/\s]*:[^/\s]*@|https?://[^/\s:]+@")


def check(environment: Mapping[str, str]) -> Finding:
    """Check that the dag-processor can fetch DAGS_GIT.

    The finding is empty if neither DAGS_GIT nor its Compose file is set. For a wrong address it
    names a remedy. If the host does not answer now, no remedy is needed, because the stack starts
    with the DAGs of its last fetch.
    """
    address = environment.get("DAGS_GIT", "")
    has_file = "dags-git.yml" in environment.get("COMPOSE_FILE", "")
    if not address:
        remedy = f"set DAGS_GIT in .env, or remove {FILE} from COMPOSE_FILE"
        found = f"is not set, but COMPOSE_FILE contains {FILE}" if has_file else ""
        return Finding("DAGS_GIT", found, remedy if found else "")
    if fault := _fault(address, environment, has_file):
        return Finding("DAGS_GIT", *fault)
    return _asked(address, environment)


def _fault(address: str, environment: Mapping[str, str], has_file: bool) -> tuple[str, str] | None:
    """Return what is wrong with the variables, and the remedy."""
    if environment.get("DAGS_DIR"):
        return "DAGS_DIR is set too", "delete one of the two lines in .env"
    if not has_file:
        files = environment.get("COMPOSE_FILE") or "docker-compose.yml"
        return f"COMPOSE_FILE lacks {FILE}", f"set COMPOSE_FILE={files}:{FILE} in .env"
    if _WITH_PASSWORD.match(address):
        remedy = "remove them, and write https://user:token@host into DAGS_GIT_CREDENTIALS_FILE"
        return "its address contains credentials, which logs would show", remedy
    if not _URL.fullmatch(address):
        remedy = "set it to https://host/repository, ssh://host/repository or git@host:repository"
        return f"{address!r} is not the address of a Git repository", remedy
    for name in FILES:
        if (path := environment.get(name)) and not Path(path).is_file():
            return f"{name}: {path} is not a file", f"correct {name} in .env"
    return None


def _asked(address: str, environment: Mapping[str, str]) -> Finding:
    """Ask the Git host for the branch or tag; for a commit, only for the repository."""
    access = git.Access(*(environment.get(name, "") for name in FILES)).existing()
    ref = environment.get("DAGS_GIT_REF") or "main"
    is_commit = re.fullmatch(r"[0-9a-f]{40}", ref)
    words = git.command(
        access, "ls-remote", "--exit-code", "--", address, *([] if is_commit else [ref])
    )
    try:
        ended = subprocess.run(
            words,
            env=git.environment(access),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
        )
    except FileNotFoundError:
        return Finding("DAGS_GIT", "not checked, because git is not installed on this machine")
    except subprocess.TimeoutExpired:
        return _silent(address, f"no answer within {SECONDS:.0f} s")
    if ended.returncode == 0:
        return Finding("DAGS_GIT", f"{address} has {ref}")
    if ended.returncode == 2:
        found = f"{address} has no branch or tag {ref}"
        return Finding("DAGS_GIT", found, "correct DAGS_GIT_REF in .env")
    why = git.reason(ended.stderr)
    if git.is_away(ended.stderr):
        return _silent(address, why)
    remedy = "correct DAGS_GIT in .env, or the file with its credentials"
    return Finding("DAGS_GIT", f"{address} cannot be read: {why}", remedy)


def _silent(address: str, why: str) -> Finding:
    return Finding(
        "DAGS_GIT", f"{address} does not answer ({why}); the DAGs of the last fetch are used"
    )
