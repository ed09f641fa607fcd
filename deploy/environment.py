"""The `.env` file of the Compose stack: every secret generated once, nothing overwritten."""

import os
import re
import secrets
import subprocess
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.errors import DeployError
from deploy.state import write_private


def _password() -> str:
    return secrets.token_urlsafe(24)


def _fernet_key() -> str:
    return urlsafe_b64encode(secrets.token_bytes(32)).decode()


SECRETS: Mapping[str, Callable[[], str]] = {
    "POSTGRES_SUPERUSER_PASSWORD": _password,
    "POSTGRES_PASSWORD": _password,
    "REDIS_SCHEDULER_PASSWORD": _password,
    "REDIS_WORKER_PASSWORD": _password,
    "REDIS_FLOWER_PASSWORD": _password,
    "ADMIN_PASSWORD": _password,
    "FLOWER_PASSWORD": _password,
    "JWT_SECRET": lambda: secrets.token_urlsafe(64),  # HS512 wants 64 bytes
    "API_SECRET_KEY": _password,
    "FERNET_KEY": _fernet_key,
    "S3_SECRET_KEY": _password,
}
HEADER = """\
# Written by `python -m deploy env`. What each variable means: .env.example.
# The secrets are this stack's own: to keep its data, keep this file. Read by its owner alone.
"""
LOCAL_S3 = {
    "COMPOSE_PROFILES": "s3",
    "AWS_ENDPOINT_URL": "http://s3:8333",
    "AWS_ACCESS_KEY_ID": "s3:admin",
    "AWS_DEFAULT_REGION": "us-east-1",
    "S3_BUCKET": "music-genre",
    "AIRFLOW__LOGGING__REMOTE_LOGGING": "True",
    "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER": "s3://music-genre/logs",
}
"""What makes a stack use an S3 service of its own, beside its secret key."""
LEAST_CHARACTERS = 16
_SAFE = re.compile(r"[A-Za-z0-9_=.~-]*")
_PLACEHOLDER = re.compile(r"change.?me|password|secret|placeholder|example|xxxx", re.IGNORECASE)


def read(path: Path) -> dict[str, str]:
    """Read NAME=value lines; `#` begins a comment line.

    Raises:
        DeployError: the file is missing, or a line is neither.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DeployError(f"{path} is missing; run `make env`, which writes it") from None
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.strip().partition("=")
        if not equals or not name.isidentifier():
            raise DeployError(f"{path} line {number} is no NAME=value; mend or delete it")
        found[name] = value
    return found


def ensure(path: Path, *, local_s3: bool = False) -> list[str]:
    """Add the secrets that a file lacks, or write a new file; what is there stays.

    Args:
        path: the file.
        local_s3: also have the stack run an S3 service of its own, and use it.

    Returns:
        The names of what was generated.

    Raises:
        DeployError: a secret that is there is a placeholder, a line is none, or the file names
            another S3.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else HEADER + _of_this_machine()
    found = read(path) if path.exists() else {}
    for name in SECRETS:
        if name in found and (fault := _fault(name, found[name])):
            raise DeployError(
                f"{name} in {path} {fault}; delete the line and run `make env`, which generates one"
            )
    missing = [name for name in SECRETS if name not in found]
    if text and not text.endswith("\n"):
        text += "\n"
    generated = {name: SECRETS[name]() for name in missing}
    added = dict(generated)
    if local_s3:
        added |= _local_s3(path, found, (generated | found)["S3_SECRET_KEY"])
    write_private(path, text + "".join(f"{name}={value}\n" for name, value in added.items()))
    return missing


def _local_s3(path: Path, found: Mapping[str, str], secret_key: str) -> dict[str, str]:
    """The lines that the file lacks for an S3 of the stack's own."""
    wanted = LOCAL_S3 | {"AWS_SECRET_ACCESS_KEY": secret_key}
    for name, value in wanted.items():
        if found.get(name) and found[name] != value:
            raise DeployError(
                f"{name} in {path} is set already, to something else than this stack's own S3 "
                "wants; delete its line, or stay with the S3 that it names"
            )
    return {name: value for name, value in wanted.items() if not found.get(name)}


def _fault(name: str, value: str) -> str:
    """Say what is wrong with a secret, without the secret; nothing if it may be used."""
    if not value:
        return "is empty"
    if len(value) < LEAST_CHARACTERS:
        return f"has {len(value)} characters, fewer than {LEAST_CHARACTERS}"
    if not _SAFE.fullmatch(value):
        return "has characters that cannot stand in an address (allowed: A-Z a-z 0-9 _ = . ~ -)"
    # A random one of 32 characters and more may hold such a word by chance.
    if len(value) < len(_password()) and _PLACEHOLDER.search(value):
        return "is a placeholder"
    if name == "FERNET_KEY" and not _is_fernet_key(value):
        return "is no key of 32 bytes in URL-safe base64"
    return ""


def _is_fernet_key(value: str) -> bool:
    try:
        return len(urlsafe_b64decode(value)) == 32
    except ValueError:
        return False


def _of_this_machine() -> str:
    """Lines for what this machine has: a certificate bundle of its own, NVIDIA GPUs."""
    bundle = os.environ.get("SSL_CERT_FILE", "")
    lines = [f"CA_BUNDLE={bundle}\n"] if Path(bundle).is_file() else []
    if has_gpu():
        lines.append("COMPOSE_FILE=docker-compose.yml:deploy/compose/gpu.yml\n")
    return "".join(lines)


def has_gpu() -> bool:
    """Whether the NVIDIA driver answers and names a GPU."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout
