"""What the Compose stack needs of a machine, each with what was found and the remedy."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from deploy.components import REPOSITORY
from deploy.environment import has_gpu
from deploy.errors import DeployError

GIB = 1024**3
MIN_ENGINE, MIN_COMPOSE = (20, 10), (2, 20)
MIN_CORES, MIN_MEMORY_GIB, MIN_DISK_GIB = 2, 6, 25
"""The stack takes 1.5 GiB when idle, a training on a CPU 1 to 2 more; the images take 9."""
MAX_SKEW_SECONDS = 5
"""Tokens are refused by a clock that differs by 10 s."""
PORTS = {"WEB_PORT": 8080, "FLOWER_PORT": 5555}


class Finding(NamedTuple):
    """What one check found."""

    name: str
    found: str
    remedy: str = ""
    """Empty where all is well."""


def docker(*words: str) -> str:
    """Ask the docker command.

    Raises:
        DeployError: it is missing, fails, or does not answer within 20 s.
    """
    try:
        answer = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        raise DeployError("the docker command is missing; install Docker Engine") from None
    except subprocess.TimeoutExpired:
        raise DeployError("the Docker engine has not answered for 20 s; restart it") from None
    if answer.returncode == 0:
        return answer.stdout.strip()
    said = " ".join(answer.stderr.split())
    if "permission denied" in said:
        raise DeployError(
            f"this user may not speak to the Docker engine ({said}); run as root, or add the user "
            "to the group docker"
        )
    if "Cannot connect" in said:
        raise DeployError(f"no Docker engine answers ({said}); start it")
    raise DeployError(f"`docker {' '.join(words)}` failed: {said}")


def check(environment: Mapping[str, str], *, running: bool) -> list[Finding]:
    """Look at everything.

    Args:
        environment: the variables of .env.
        running: the stack is up, and holds its ports itself.

    Raises:
        DeployError: the engine does not answer, so nothing else can be asked.
    """
    info: dict[str, Any] = json.loads(docker("info", "--format", "{{json .}}"))
    findings = [
        _version("Docker engine", str(info["ServerVersion"]), MIN_ENGINE),
        _compose(),
        _at_least("cores", int(info["NCPU"]), MIN_CORES, ""),
        _at_least("memory", round(info["MemTotal"] / GIB, 1), MIN_MEMORY_GIB, " GiB"),
        _disk(Path(info["DockerRootDir"])),
        _clock(info["SystemTime"]),
    ]
    if not running:
        findings += [_port(name, environment) for name in PORTS]
    if "gpu.yml" in environment.get("COMPOSE_FILE", ""):
        findings += [_driver(), _toolkit(info)]
    return findings


def _version(name: str, found: str, least: tuple[int, int]) -> Finding:
    numbers = tuple(int(part) for part in found.lstrip("v").split(".")[:2])
    wanted = ".".join(map(str, least))
    return Finding(name, found, "" if numbers >= least else f"install {wanted} or later")


def _compose() -> Finding:
    try:
        return _version("Compose", docker("compose", "version", "--short"), MIN_COMPOSE)
    except DeployError as error:
        return Finding("Compose", str(error), "install the Compose plugin, version 2")


def _at_least(name: str, found: float, least: float, unit: str) -> Finding:
    remedy = f"give the engine at least {least}{unit}"
    return Finding(name, f"{found:g}{unit}", "" if found >= least else remedy)


def _disk(folder: Path) -> Finding:
    # Docker Desktop's folder is inside its virtual machine.
    looked_at = folder if folder.exists() else REPOSITORY
    free = shutil.disk_usage(looked_at).free / GIB
    remedy = "" if free >= MIN_DISK_GIB else f"free {MIN_DISK_GIB} GiB: `docker system prune`"
    return Finding("disk", f"{free:.0f} GiB free in {looked_at}", remedy)


def _clock(engine_time: str) -> Finding:
    # The engine writes nanoseconds, of which Python reads six digits.
    head, _, tail = engine_time.partition(".")
    zone = tail.lstrip("0123456789").replace("Z", "+00:00") or "+00:00"
    skew = abs((datetime.fromisoformat(head + zone) - datetime.now(UTC)).total_seconds())
    remedy = "" if skew <= MAX_SKEW_SECONDS else "set both clocks by NTP"
    return Finding("clock", f"the engine's differs by {skew:.0f} s", remedy)


def _port(name: str, environment: Mapping[str, str]) -> Finding:
    text = environment.get(name) or str(PORTS[name])
    if not text.isdecimal() or not 0 < int(text) < 65536:
        return Finding(
            name, f"{text!r} is no port", f"write a number below 65536 as {name} in .env"
        )
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", int(text)))
        except OSError as error:
            found = f"port {text}: {os.strerror(error.errno or 0)}"
            return Finding(name, found, f"stop what listens there, or set {name} in .env")
    return Finding(name, f"port {text} is free")


def _driver() -> Finding:
    if has_gpu():
        return Finding("GPU driver", "answers")
    remedy = "install the NVIDIA driver, or take gpu.yml out of COMPOSE_FILE in .env"
    return Finding("GPU driver", "`nvidia-smi -L` names no GPU", remedy)


def _toolkit(info: Mapping[str, Any]) -> Finding:
    if "nvidia" in info.get("Runtimes", {}) or info.get("CDISpecDirs"):
        return Finding("GPU toolkit", "known to the engine")
    remedy = "install the NVIDIA Container Toolkit: `nvidia-ctk runtime configure`"
    return Finding("GPU toolkit", "the engine has no runtime named nvidia", remedy)
