"""Checks of `.env` and of the services that Compose derives from it."""

import difflib
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deploy.containers.environment import variables
from deploy.containers.stack import queue_of
from deploy.places import DEMO_MUSIC, PORTS
from fleet.contract import queues

MIB = 1024**2
SIZES = {
    "CPU_WORKER_MEMORY": "4g",
    "CPU_WORKER_TMP": "1g",
    "GPU_WORKER_MEMORY": "8g",
    "GPU_WORKER_SHM": "1g",
    "GPU_WORKER_TMP": "2g",
}
"""Variables that are sizes, with their defaults in docker-compose.yml."""
_MEMORY = r"(?:[1-9]\d{6,}|[1-9]\d*(?:\.\d+)?\s?[kmgt](?:i?b)?)"
"""A memory limit that Docker accepts: a number with a unit, or at least 7 digits (bytes)."""


class Finding(NamedTuple):
    """The result of one check."""

    name: str
    found: str
    remedy: str = ""
    """How the user can fix the fault; empty if nothing is wrong."""


def of_variables(environment: Mapping[str, str], held: set[str]) -> list[Finding]:
    """Check the variables of .env; returns the findings that have something to report.

    Args:
        environment: the variables.
        held: ports that the stack itself uses.
    """
    findings = [
        _audio(environment),
        _dags(environment),
        _schedule(environment),
        _base_url(environment),
        *(_port(name, environment, held) for name in PORTS),
        *(_size(name, environment) for name in SIZES),
    ]
    return [finding for finding in findings if finding.found]


def _audio(environment: Mapping[str, str]) -> Finding:
    """Check that the music is arranged by genre, and that the containers can read it.

    The containers' user has no account on this machine, so the file permissions for others apply.
    """
    folder = Path(environment.get("AUDIO_DIR") or DEMO_MUSIC)
    remedy = "set AUDIO_DIR in .env to the absolute path of a folder with one subfolder per genre"
    if not folder.is_absolute():  # Compose would take some relative paths for volume names
        return Finding("AUDIO_DIR", f"{str(folder)!r} is not an absolute path", remedy)
    if not folder.is_dir():
        return Finding("AUDIO_DIR", f"{folder} is not a folder", remedy)
    genres = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    if not any(path.is_file() for genre in genres[1:] for path in genre.iterdir()):
        remedy = (
            "arrange the music as <genre>/<track>.wav, or set AUDIO_DIR in .env to another folder"
        )
        return Finding("AUDIO_DIR", f"no subfolder of {folder} contains a file", remedy)
    samples = [
        next((path for path in genre.iterdir() if path.is_file()), genre) for genre in genres
    ]
    return readable("AUDIO_DIR", [*genres, *samples], folder)


def _dags(environment: Mapping[str, str]) -> Finding:
    """Check that the dag-processor can read DAGS_DIR, the folder of the user's own DAGs."""
    folder = Path(environment.get("DAGS_DIR", ""))
    remedy = "write the absolute path of a folder of DAG files as DAGS_DIR in .env"
    if folder == Path():
        return Finding("DAGS_DIR", "")
    if not folder.is_absolute():  # Compose would take some relative paths for volume names
        return Finding("DAGS_DIR", f"{str(folder)!r} is not an absolute path", remedy)
    if not folder.is_dir():
        return Finding("DAGS_DIR", f"{folder} is not a folder", remedy)
    for path in (folder, *folder.rglob("*")):
        is_hidden = any(part[0] == "." for part in path.relative_to(folder).parts)
        if not is_hidden and path.exists():
            finding = readable("DAGS_DIR", [path], path)
            if finding.remedy:
                return finding
    return Finding("DAGS_DIR", f"{folder} is readable")


def readable(name: str, paths: list[Path], folder: Path) -> Finding:
    """Check that other users can read the files, and can list and enter the folders."""
    for path in paths:
        wanted = 0o005 if path.is_dir() else 0o004
        if path.stat().st_mode & wanted != wanted:
            remedy = f"make it readable for the containers' users: `chmod -R o+rX {folder}`"
            return Finding(name, f"{path} is not readable by other users", remedy)
    return Finding(name, f"{folder} is readable")


def _port(name: str, environment: Mapping[str, str], held: set[str]) -> Finding:
    text = environment.get(name) or str(PORTS[name])
    for other in PORTS:
        if other != name and text == (environment.get(other) or str(PORTS[other])):
            return Finding(
                name, f"port {text} is also used for {other}", f"set another {name} in .env"
            )
    if text in held:
        return Finding(name, f"port {text} is used by this stack")
    if not text.isdecimal() or not 0 < int(text) < 65536:
        return Finding(
            name, f"{text!r} is not a port", f"set {name} in .env to a number from 1 to 65535"
        )
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", int(text)))
        except OSError as error:
            found = f"port {text}: {os.strerror(error.errno or 0)}"
            return Finding(name, found, f"stop the program using it, or set another {name} in .env")
    return Finding(name, f"port {text} is free")


def _schedule(environment: Mapping[str, str]) -> Finding:
    """Report when the training runs, and refuse a DAILY that is neither 1 nor 0.

    Without this check, any other value would silently mean 0.
    """
    text = environment.get("DAILY", "")
    if text not in ("", "0", "1"):
        return Finding("DAILY", f"{text!r} is neither 1 nor 0", "set DAILY in .env to 1 or 0")
    return Finding("schedule", "daily at midnight UTC" if text == "1" else "on demand")


def _base_url(environment: Mapping[str, str]) -> Finding:
    """Check BASE_URL, the address of Airflow in links."""
    text = environment.get("BASE_URL", "")
    if text and not re.fullmatch(r"https?://[^/\s?#]+(/[^\s?#]*)?", text):
        remedy = "set BASE_URL in .env to an address such as https://host/airflow"
        return Finding("BASE_URL", f"{text!r} is not an HTTP address", remedy)
    return Finding("BASE_URL", text)


def _size(name: str, environment: Mapping[str, str]) -> Finding:
    """Check that Docker accepts a size.

    The size of a /tmp needs a unit of one letter. Any other size without a unit is
    in bytes, and must have at least 7 digits.
    """
    text = environment.get(name) or SIZES[name]
    is_tmp = name.endswith("_TMP")
    if not re.fullmatch(r"[1-9]\d*[kmg]" if is_tmp else _MEMORY, text, re.IGNORECASE):
        remedy = f"set {name} in .env to a number with m or g, such as {SIZES[name]}"
        return Finding(name, f"{text!r} is not a size", remedy)
    return Finding(name, "")


def _share(worker: str, services: Mapping[str, Any]) -> list[Finding]:
    """Check that a worker's /tmp, which is in memory, can take at most half of the worker's memory.

    Args:
        worker: CPU or GPU.
        services: the services as Compose reads them.
    """
    service = services.get(f"{worker.lower()}-worker", {})
    mounted = "\n".join(service.get("tmpfs") or []).lower()
    size = re.search(r"^/tmp:.*size=(\d+)([kmg])", mounted, re.M)
    if size is None or "mem_limit" not in service:
        return []
    tmp = int(size[1]) * 1024 ** " kmg".index(size[2])
    memory = int(service["mem_limit"])
    if tmp * 2 <= memory:
        return []
    found = (
        f"the worker's /tmp may take {tmp // MIB} MiB, more than half of the worker's "
        f"{memory // MIB} MiB of memory"
    )
    remedy = f"set {worker}_WORKER_TMP in .env to {memory // MIB // 4}m"
    return [Finding(f"{worker}_WORKER_TMP", found, remedy)]


def unused(names: Sequence[str]) -> list[Finding]:
    """Report variables of .env that no Compose file uses; refuse likely misspellings."""
    found = []
    for name in names:
        near = difflib.get_close_matches(name, variables(), n=1, cutoff=0.85)
        remedy = f"correct it to {near[0]}, or delete the line" if near else ""
        found.append(Finding(".env", f"{name} is not used by any file of the stack", remedy))
    return found


def of_services(services: Mapping[str, Any]) -> list[Finding]:
    """Check the services as Compose reads them: their memory and their queues."""
    shares = [finding for worker in ("CPU", "GPU") for finding in _share(worker, services)]
    return shares + workers(services)


def workers(services: Mapping[str, Any]) -> list[Finding]:
    """Check that the queues that workers serve are exactly the queues of the contract."""
    served = {queue for service in services.values() if (queue := queue_of(service.get("command")))}
    missing = [
        Finding(
            f"queue {name}",
            "no service in docker-compose.yml serves this queue",
            f"add a service {name}-worker that runs `python -m fleet worker {name}`",
        )
        for name in queues()
        if name not in served
    ]
    unknown = [
        Finding(
            f"queue {name}",
            "a service serves this queue, but deploy/queues.toml does not define it",
            f"add a table [queues.{name}], or remove the service",
        )
        for name in sorted(served - set(queues()))
    ]
    return missing + unknown
