"""The `.env` file of the Compose stack: every secret generated once, nothing overwritten."""

import math
import os
import re
import secrets
import subprocess
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.errors import DeployError
from deploy.files import write_private
from deploy.places import REPOSITORY
from fleet.contract import queues


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
    "JWT_SECRET": lambda: secrets.token_urlsafe(64),
    "API_SECRET_KEY": _password,
    "FERNET_KEY": _fernet_key,
    "S3_SECRET_KEY": _password,
}
HEADER = """\
# Written by `python -m deploy env`. What each variable means: .env.example.
# The secrets are this stack's own: to keep its data, keep this file. Read by its owner alone.
"""
BOUND_TO_DATA = {"POSTGRES_PASSWORD", "ADMIN_PASSWORD", "FERNET_KEY"}
"""Secrets that the database depends on: a new one cannot open what an old one has locked."""
EXAMPLE = REPOSITORY / ".env.example"
LEAST_CHARACTERS = 16
LEAST_OF_JWT_SECRET = 64
"""HS512 requires a key of 64 bytes (RFC 7518, section 3.2)."""
_SAFE = re.compile(r"[A-Za-z0-9_=.~-]*")
_PLACEHOLDER = re.compile(r"change.?me|password|secret|placeholder|example|x{6}", re.IGNORECASE)


def variables() -> set[str]:
    """Name every variable of the stack's file, as `.env.example` lists them."""
    return set(re.findall(r"^#? ?([A-Z_0-9]+)=", EXAMPLE.read_text(encoding="utf-8"), re.M))


def read(path: Path) -> dict[str, str]:
    """Read NAME=value lines; `#` begins a comment line.

    Raises:
        DeployError: the file is missing, or a line is neither NAME=value nor a comment.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DeployError(
            f"{path} is missing; restore it, or run `make env`, which writes a new one"
        ) from None
    return _parse(lines, path)


def planned(path: Path) -> dict[str, str]:
    """Read the file; if it is missing, return what would be written into it on this machine.

    Raises:
        DeployError: a line is not NAME=value.
    """
    return read(path) if path.exists() else _parse(_of_this_machine().splitlines(), path)


def _parse(lines: Sequence[str], path: Path) -> dict[str, str]:
    found = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.strip().partition("=")
        if not equals or not name.isidentifier():
            raise DeployError(f"{path} line {number} is not NAME=value; correct or delete it")
        found[name] = value
    return found


def ensure(
    path: Path,
    *,
    profiles: Sequence[str] = (),
    chosen: Mapping[str, str] | None = None,
    has_data: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Add the secrets that a file lacks, or write a new file; existing secrets stay.

    Args:
        path: the file.
        profiles: also start these; `s3` also makes the stack use its own S3 service.
        chosen: variables to set, whatever the file says.
        has_data: returns whether the stack has a database, made with an earlier file's secrets;
            called only if one of them is missing or refused.

    Returns:
        The names of the generated secrets.

    Raises:
        DeployError: an existing secret is a placeholder or otherwise unusable, a line is not
            NAME=value, the file names another S3, or it lacks a secret that the database was
            made with.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else HEADER + _of_this_machine()
    found = read(path) if path.exists() else {}
    for name in SECRETS:
        if name in found and (fault := _fault(name, found[name])):
            bound = name in BOUND_TO_DATA and has_data()
            remedy = "restore what this stack's database was made with"
            other = "delete the line and run `make env`, which generates one"
            raise DeployError(f"{name} in {path} {fault}; {remedy if bound else other}")
    missing = [name for name in SECRETS if name not in found]
    if (lost := sorted(BOUND_TO_DATA.intersection(missing))) and has_data():
        raise DeployError(
            f"{path} lacks {', '.join(lost)}, with which this stack's database was made; restore "
            "the file, or delete the stack's data: `make down VOLUMES=1`"
        )
    added = {name: _draw(name) for name in missing}
    added |= with_profiles(found, profiles)
    if "s3" in profiles:
        added |= _local_s3(path, {**found, **(chosen or {})}, (added | found)["S3_SECRET_KEY"])
    write_private(path, _with_lines(text, {**added, **(chosen or {})}))
    return missing


def profiles_of(found: Mapping[str, str]) -> list[str]:
    """List the profiles that a file starts."""
    return [name for name in found.get("COMPOSE_PROFILES", "").split(",") if name]


def with_profiles(found: Mapping[str, str], profiles: Sequence[str]) -> dict[str, str]:
    """The line that adds profiles to those that a file names; empty if it names them already."""
    named = profiles_of(found)
    wanted = [*named, *(name for name in profiles if name not in named)]
    return {"COMPOSE_PROFILES": ",".join(wanted)} if wanted != named else {}


def _draw(name: str) -> str:
    """Generate a secret; a new one is drawn if by chance it has a word that `_fault` refuses."""
    while _fault(name, value := SECRETS[name]()):
        pass
    return value


def _with_lines(text: str, values: Mapping[str, str]) -> str:
    """Set variables, each in its existing line or else in a new line at the end."""
    lines = text.splitlines()
    for name, value in values.items():
        here = [number for number, line in enumerate(lines) if line.startswith(f"{name}=")]
        for number in here:
            lines[number] = f"{name}={value}"
        if not here:
            lines.append(f"{name}={value}")
    return "".join(f"{line}\n" for line in lines)


def _local_s3(path: Path, found: Mapping[str, str], secret_key: str) -> dict[str, str]:
    """The lines that the file lacks for using the stack's own S3."""
    bucket = found.get("S3_BUCKET") or "music-genre"
    wanted = {
        "AWS_ENDPOINT_URL": "http://s3:8333",
        "AWS_ACCESS_KEY_ID": "s3:admin",
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "S3_BUCKET": bucket,
        "AIRFLOW__LOGGING__REMOTE_LOGGING": "True",
        "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER": f"s3://{bucket}/logs",
        "MUSIC_GENRE_DVC_REMOTE": f"s3://{bucket}/dvc",
    }
    for name, value in wanted.items():
        if found.get(name) and found[name] != value:
            raise DeployError(
                f"{name} in {path} is set already, to something else than this stack's own S3 "
                "wants; delete its line, or stay with the S3 that it names"
            )
    return {name: value for name, value in wanted.items() if not found.get(name)}


def _fault(name: str, value: str) -> str:
    """Say what is wrong with a secret, without showing it; empty if it may be used."""
    least = LEAST_OF_JWT_SECRET if name == "JWT_SECRET" else LEAST_CHARACTERS
    if not value:
        return "is empty"
    if len(value) < least:
        return f"has {len(value)} characters, fewer than {least}"
    if name == "FERNET_KEY":
        return _fernet_fault(value)
    if not _SAFE.fullmatch(value):
        return "has characters that cannot stand in an address (allowed: A-Z a-z 0-9 _ = . ~ -)"
    if word := _PLACEHOLDER.search(value):
        return f"is a placeholder: it holds {word[0]!r}"
    return ""


def _fernet_fault(value: str) -> str:
    """Say what is wrong with a Fernet key, or with the new and old ones during a rotation."""
    if not all(map(_is_fernet_key, value.split(","))):
        return "is not a key of 32 bytes in URL-safe base64, nor several separated by commas"
    return ""


def _is_fernet_key(value: str) -> bool:
    try:
        return len(urlsafe_b64decode(value)) == 32
    except ValueError:
        return False


def _of_this_machine() -> str:
    """Lines for this machine: its own certificate bundle and its NVIDIA GPUs, if it has them."""
    bundle = os.environ.get("SSL_CERT_FILE", "")
    lines = [f"CA_BUNDLE={bundle}\n"] if Path(bundle).is_file() else []
    if n_gpus := count_gpus():
        lines.append("COMPOSE_FILE=docker-compose.yml:deploy/compose/gpu.yml\n")
        memory = max(8, math.ceil(n_gpus * queues()["gpu"].memory_gib))
        lines.append(f"GPU_WORKER_MEMORY={memory}g\n")
    return "".join(lines)


def count_gpus() -> int:
    """Count the GPUs that the NVIDIA driver names."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return sum(line.startswith("GPU ") for line in lines)
