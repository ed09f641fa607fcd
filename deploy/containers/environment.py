"""The `.env` file of the Compose stack: each secret is generated once and then kept.

Compose itself parses the file, so the checks see the same values as the containers.
"""

import json
import math
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.containers.engine import DockerError, docker
from deploy.containers.passwords import BOUND_TO_DATA, SECRETS, draw, fault_of
from deploy.errors import DeployError
from deploy.files import write_private
from deploy.places import REPOSITORY
from fleet.contract import queues

HEADER = """\
# Written by `python -m deploy env`. For the meaning of each variable see .env.example.
# The stack's data need these secrets: keep this file with the data. Only its owner can read it.
"""
EXAMPLE = REPOSITORY / ".env.example"
_NAMED = re.compile(r"^[ \t]*(?:export[ \t]+)?([A-Za-z_]\w*)[ \t]*[=:]", re.M)
_OF_DOCKER = ("COMPOSE_", "DOCKER_", "BUILDKIT_")


def variables() -> set[str]:
    """The names of all variables that `.env.example` lists."""
    return set(re.findall(r"^#? ?([A-Z_0-9]+)=", EXAMPLE.read_text(encoding="utf-8"), re.M))


def shell() -> dict[str, str]:
    """This shell's environment, without the variables that would override `.env`."""
    names = {*variables(), "COMPOSE_PROJECT_NAME"}
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return kept | {"DOCKER_BUILDKIT": "1"}


def read(path: Path) -> dict[str, str]:
    """Read the variables that a file sets, with Compose's own rules for quotes, `$` and comments.

    Raises:
        DeployError: the file is missing, or Compose cannot read it.
    """
    if not path.exists():
        raise DeployError(
            f"{path} is missing; restore it, or run `make env`, which writes a new one"
        )
    _text(path)
    names = sorted(variables())
    services = {
        "values": {name: f"${{{name}-}}" for name in names},
        "is-set": {name: f"${{{name}+yes}}" for name in names},
    }
    question = {
        "name": "question",
        "services": {
            service: {"image": "none", "environment": asked} for service, asked in services.items()
        },
    }
    words = ("compose", "-f", "-", "--env-file", str(path), "config", "--format", "json")
    try:
        answer = docker(*words, text=json.dumps(question), environment=shell())
    except DockerError as error:
        # Compose's message can contain a secret, so only its line number is reported.
        line = re.search(r"line \d+", error.said)
        where = f" {line[0]}" if line else ""
        raise DeployError(
            f"Compose cannot read {path}{where}; check that each line is NAME=value and that each "
            "quote and each ${ is closed"
        ) from None
    values, is_set = (_of_service(answer, service) for service in services)
    # Compose prints a `$` as `$$`.
    return {name: values[name].replace("$$", "$") for name in names if is_set[name]}


def _of_service(answer: str, service: str) -> dict[str, str]:
    """The environment of a service as `docker compose config --format json` prints it.

    Raises:
        DeployError: the answer is not JSON, for example because Compose 2.25.0 prints no JSON.
    """
    try:
        return dict(json.loads(answer)["services"][service]["environment"])
    except (ValueError, KeyError) as error:
        raise DeployError(
            "this Compose version does not print its configuration as JSON; install Compose "
            "2.26 or later"
        ) from error


def unknown(path: Path, files: Sequence[Path]) -> list[str]:
    """List the variables that a `.env` file sets but no Compose file uses.

    Args:
        path: the `.env` file; it need not exist.
        files: the Compose files.
    """
    used = variables().union(
        *(
            re.findall(r"\$\{?(\w+)", file.read_text(encoding="utf-8", errors="replace"))
            for file in files
        )
    )
    named = [match[1] for match in _NAMED.finditer(_text(path))] if path.exists() else []
    return [name for name in named if name not in used and not name.startswith(_OF_DOCKER)]


def _text(path: Path) -> str:
    """Read the file as text.

    Raises:
        DeployError: the file is not UTF-8.
    """
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DeployError(f"{path} line {line} is not UTF-8; save the file as UTF-8") from error


def ensure(
    path: Path,
    *,
    profiles: Sequence[str] = (),
    chosen: Mapping[str, str] | None = None,
    has_data: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Add missing secrets to a `.env` file, or write a new file; existing secrets are kept.

    Args:
        path: the file.
        profiles: the Compose profiles to add to those in the file. `s3` also makes the stack use
            its own S3 service.
        chosen: variables to set; they replace the values in the file.
        has_data: returns whether the stack has a database. If so, the secrets in `BOUND_TO_DATA`
            must stay the same. Called only if one of these secrets is missing or unusable.

    Returns:
        The names of the generated secrets.

    Raises:
        DeployError: an existing secret is unusable, such as a placeholder; the file cannot be read;
            `s3` is given, but the file names another S3; or the file lacks a secret with which the
            database was created.
    """
    text, generated = planned(path, profiles=profiles, chosen=chosen, has_data=has_data)
    write_private(path, text)
    return generated


def planned(
    path: Path,
    *,
    profiles: Sequence[str] = (),
    chosen: Mapping[str, str] | None = None,
    has_data: Callable[[], bool] = lambda: False,
) -> tuple[str, list[str]]:
    """Return the text that `ensure` would write, and the names of the new secrets.

    The arguments and errors are those of `ensure`.
    """
    is_new = not path.exists()
    found = _of_this_machine() if is_new else read(path)
    _refuse_faults(path, found, has_data)
    missing = [name for name in SECRETS if name not in found]
    if (lost := sorted(BOUND_TO_DATA.intersection(missing))) and has_data():
        raise DeployError(
            f"{path} lacks {', '.join(lost)}, but this stack's database depends on the old "
            "value; restore the file, or delete only the database: run `make down`, then remove "
            "its volume `…_postgres` with `docker volume rm`"
        )
    added = found if is_new else {}
    added = {**added, **{name: draw(name) for name in missing}, **with_profiles(found, profiles)}
    if "s3" in profiles:
        added |= _local_s3(path, {**found, **(chosen or {})}, (added | found)["S3_SECRET_KEY"])
    text = HEADER if is_new else _text(path)
    return _with_lines(text, {**added, **(chosen or {})}), missing


def _refuse_faults(path: Path, found: Mapping[str, str], has_data: Callable[[], bool]) -> None:
    for name in SECRETS:
        if name in found and (fault := fault_of(name, found[name])):
            bound = name in BOUND_TO_DATA and has_data()
            remedy = "restore the value with which this stack's database was created"
            other = "delete the line and run `make env`, which generates a new secret"
            raise DeployError(f"{name} in {path} {fault}; {remedy if bound else other}")


def profiles_of(found: Mapping[str, str]) -> list[str]:
    """List the profiles that COMPOSE_PROFILES enables."""
    return [name for name in found.get("COMPOSE_PROFILES", "").split(",") if name]


def with_profiles(found: Mapping[str, str], profiles: Sequence[str]) -> dict[str, str]:
    """Return COMPOSE_PROFILES with these profiles added; {} if it already contains them all."""
    named = profiles_of(found)
    wanted = [*named, *(name for name in profiles if name not in named)]
    return {"COMPOSE_PROFILES": ",".join(wanted)} if wanted != named else {}


def _with_lines(text: str, values: Mapping[str, str]) -> str:
    """Set variables, each in its existing line or else in a new line at the end."""
    lines = text.splitlines()
    named = [match[1] if (match := _NAMED.match(line)) else "" for line in lines]
    for name, value in values.items():
        here = [number for number, found in enumerate(named) if found == name]
        for number in here:
            lines[number] = f"{name}={value}"
        if not here:
            lines.append(f"{name}={value}")
    return "".join(f"{line}\n" for line in lines)


def _local_s3(path: Path, found: Mapping[str, str], secret_key: str) -> dict[str, str]:
    """The variables that must be added to the file so that the stack uses its own S3."""
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
                f"{name} in {path} is already set, but not to the value for this stack's own S3; "
                "delete the line, or omit S3=1 to use the S3 service that the file names"
            )
    return {name: value for name, value in wanted.items() if not found.get(name)}


def _of_this_machine() -> dict[str, str]:
    """Variables that depend on this machine: its CA bundle and its NVIDIA GPUs, if it has any."""
    bundle = os.environ.get("SSL_CERT_FILE", "")
    found = {"CA_BUNDLE": bundle} if Path(bundle).is_file() else {}
    if n_gpus := count_gpus():
        found["COMPOSE_FILE"] = "docker-compose.yml:deploy/compose/gpu.yml"
        memory = max(8, math.ceil(n_gpus * queues()["gpu"].memory_gib))
        found["GPU_WORKER_MEMORY"] = f"{memory}g"
    return found


def count_gpus() -> int:
    """Count the GPUs that the NVIDIA driver lists."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return sum(line.startswith("GPU ") for line in lines)
