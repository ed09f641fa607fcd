"""Checks of DAGS_GIT, the Git repository of the user's own DAGs.

The check uses only what the dag-processor's container has: not the user's own configuration, keys
and credential helpers, with which a wrong setting could seem right.
"""

import os
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
CONTAINER_USER = 50000


def check(environment: Mapping[str, str]) -> Finding:
    """Check that the dag-processor can fetch DAGS_GIT.

    The finding is empty if neither DAGS_GIT nor its Compose file is set. For a wrong address it
    names a remedy. If the host does not answer now, no remedy is needed, because the stack starts
    with the DAGs of its last fetch.
    """
    address = environment.get("DAGS_GIT", "")
    has_file = FILE in environment.get("COMPOSE_FILE", "").split(":")
    if not address:
        remedy = f"set DAGS_GIT in .env, or remove {FILE} from COMPOSE_FILE"
        found = f"is not set, but COMPOSE_FILE contains {FILE}" if has_file else ""
        return Finding("DAGS_GIT", found, remedy if found else "")
    if fault := _fault(address, environment, has_file):
        return Finding("DAGS_GIT", *fault)
    if closed := [name for name in FILES if not _is_open_here(environment.get(name, ""))]:
        return Finding("DAGS_GIT", f"not checked, because this user cannot read {closed[0]}")
    return _asked(address, environment)


def _fault(address: str, environment: Mapping[str, str], has_file: bool) -> tuple[str, str] | None:
    """Return what is wrong with the variables, and the remedy."""
    if environment.get("DAGS_DIR"):
        return "DAGS_DIR is set too", "delete one of the two lines in .env"
    if not has_file:
        files = environment.get("COMPOSE_FILE") or "docker-compose.yml"
        return f"COMPOSE_FILE lacks {FILE}", f"set COMPOSE_FILE={files}:{FILE} in .env"
    if fault := git.fault_of(address):
        return fault
    if environment.get("DAGS_GIT_KEY_FILE") and not environment.get("DAGS_GIT_KNOWN_HOSTS_FILE"):
        remedy = "write the output of `ssh-keyscan HOST` into a file, verify it, and set the path"
        return "DAGS_GIT_KEY_FILE is set, but DAGS_GIT_KNOWN_HOSTS_FILE is not", remedy
    faults = (_file_fault(name, environment.get(name, "")) for name in FILES)
    return next((fault for fault in faults if fault), None)


def _file_fault(name: str, path: str) -> tuple[str, str] | None:
    """Check that a file exists, as far as this user can see, and that the container may read it."""
    if not path:
        return None
    try:
        its = Path(path).stat()
    except PermissionError:
        return None
    except OSError as error:
        return f"{name}: {path}: {error.strerror}", f"correct {name} in .env"
    if its.st_mode & 0o004 or (its.st_uid == CONTAINER_USER and its.st_mode & 0o400):
        return None
    found = f"{name}: the container's user {CONTAINER_USER} cannot read {path}"
    return found, f"`chown {CONTAINER_USER} {path}`"


def _is_open_here(path: str) -> bool:
    return not path or os.access(path, os.R_OK)


def _asked(address: str, environment: Mapping[str, str]) -> Finding:
    """Ask the host for the branch or tag."""
    access = git.Access(*(environment.get(name, "") for name in FILES)).existing()
    ref = environment.get("DAGS_GIT_REF") or "main"
    try:
        ended = subprocess.run(
            git.command(access, "ls-remote", "--", address),
            env=git.environment(access, alone=True),
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
    if ended.returncode:
        why = git.reason(ended.stderr)
        remedy = "correct DAGS_GIT in .env, or the file with its credentials"
        is_away = git.is_away(ended.stderr)
        wrong = Finding("DAGS_GIT", f"{address} cannot be read: {why}", remedy)
        return _silent(address, why) if is_away else wrong
    if re.fullmatch(r"[0-9a-f]{40}", ref):
        return Finding("DAGS_GIT", f"{address} can be read; commit {ref} is not checked")
    names = {line.partition("\t")[2] for line in ended.stdout.splitlines()}
    if names & {ref, f"refs/heads/{ref}", f"refs/tags/{ref}"}:
        return Finding("DAGS_GIT", f"{address} has {ref}")
    found = f"{address} has no branch or tag {ref}"
    return Finding("DAGS_GIT", found, "correct DAGS_GIT_REF in .env")


def _silent(address: str, why: str) -> Finding:
    return Finding(
        "DAGS_GIT", f"{address} does not answer ({why}); the DAGs of the last fetch are used"
    )
