"""What the Compose stack needs from a machine: each check with its finding and its remedy."""

import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from deploy.containers.engine import docker
from deploy.containers.environment import count_gpus, profiles_of
from deploy.errors import DeployError
from deploy.places import DEMO_MUSIC, PORTS, REPOSITORY

GIB = 1024**3
MIN_ENGINE, MIN_COMPOSE, MIN_BUILDX = (20, 10), (2, 20), (0, 8)
MIN_CORES, MIN_MEMORY_GIB, MIN_DISK_GIB, MIN_DISK_GIB_BUILT = 2, 6, 25, 3
"""The idle stack takes 1.5 GiB, a training on a CPU 1 to 2 more; the images take 9 on disk."""
LARGEST_IMAGE = "music-genre/gpu-worker"
MAX_SKEW_SECONDS = 5
"""Tokens are refused if the clocks differ by 10 s."""


class Finding(NamedTuple):
    """What one check found."""

    name: str
    found: str
    remedy: str = ""
    """Empty if all is well."""


def check(environment: Mapping[str, str], held_ports: Callable[[], set[int]]) -> list[Finding]:
    """Run all checks.

    Args:
        environment: the variables of .env.
        held_ports: returns the ports that the stack itself uses; called only if Compose can
            answer.

    Raises:
        DeployError: the engine does not answer, so nothing else can be checked.
    """
    info: dict[str, Any] = json.loads(docker("info", "--format", "{{json .}}"))
    compose = _plugin("Compose", "compose", "version", "--short", least=MIN_COMPOSE)
    findings = [
        _version("Docker engine", str(info["ServerVersion"]), MIN_ENGINE),
        compose,
        _plugin("buildx", "buildx", "version", least=MIN_BUILDX),
        _at_least("cores", int(info["NCPU"]), MIN_CORES, ""),
        _at_least("memory", round(info["MemTotal"] / GIB, 1), MIN_MEMORY_GIB, " GiB"),
        _disk(Path(info["DockerRootDir"]), environment),
        _clock(info["SystemTime"]),
        _audio(environment),
        _scripts(),
        _schedule(environment),
    ]
    if not compose.remedy:
        held = {str(port) for port in held_ports()}
        findings += [_port(name, environment, held) for name in PORTS]
    if "docker" in profiles_of(environment):
        findings.append(_docker_way(environment))
    if "gpu.yml" in environment.get("COMPOSE_FILE", ""):
        findings += [_driver(), _toolkit(info)]
    return findings


def _version(name: str, found: str, least: tuple[int, int]) -> Finding:
    numbers = re.search(r"(\d+)\.(\d+)", found)
    wanted = ".".join(map(str, least))
    if numbers and tuple(map(int, numbers.groups())) >= least:
        return Finding(name, found)
    return Finding(name, found, f"install {wanted} or later")


def _plugin(name: str, *question: str, least: tuple[int, int]) -> Finding:
    try:
        return _version(name, docker(*question), least)
    except DeployError as error:
        wanted = ".".join(map(str, least))
        return Finding(name, str(error), f"install Docker's {name} plugin, {wanted} or later")


def _at_least(name: str, found: float, least: float, unit: str) -> Finding:
    remedy = f"give the engine at least {least}{unit}"
    return Finding(name, f"{found:g}{unit}", "" if found >= least else remedy)


def _disk(folder: Path, environment: Mapping[str, str]) -> Finding:
    # Docker Desktop's folder is inside its virtual machine.
    looked_at = folder if folder.exists() else REPOSITORY
    free = shutil.disk_usage(looked_at).free / GIB
    built = docker("image", "ls", "-q", f"{LARGEST_IMAGE}:{environment.get('TAG') or 'latest'}")
    least = MIN_DISK_GIB_BUILT if built else MIN_DISK_GIB
    remedy = "" if free >= least else f"free {least} GiB: `docker system prune`"
    return Finding("disk", f"{free:.0f} GiB free in {looked_at}", remedy)


def _clock(engine_time: str) -> Finding:
    # The engine writes nanoseconds (Python reads only six digits), and none at a full second.
    without_fraction = re.sub(r"\.\d+", "", engine_time)
    skew = abs((datetime.fromisoformat(without_fraction) - datetime.now(UTC)).total_seconds())
    remedy = "" if skew <= MAX_SKEW_SECONDS else "set both clocks by NTP"
    return Finding("clock", f"the engine's differs by {skew:.0f} s", remedy)


def _audio(environment: Mapping[str, str]) -> Finding:
    """Check that the CPU workers' user, who has no account here, may read the music."""
    folder = Path(environment.get("AUDIO_DIR") or DEMO_MUSIC)
    remedy = "write the absolute path of a folder of genre folders as AUDIO_DIR in .env"
    if not folder.is_absolute():  # Compose would read some of them as volume names
        return Finding("AUDIO_DIR", f"{str(folder)!r} is not an absolute path", remedy)
    if not folder.is_dir():
        return Finding("AUDIO_DIR", f"{folder} is not a folder", remedy)
    genres = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    if not any(path.is_file() for genre in genres[1:] for path in genre.iterdir()):
        remedy = "lay it out as <genre>/<track>.wav, or name another AUDIO_DIR in .env"
        return Finding("AUDIO_DIR", f"no folder in {folder} holds a file", remedy)
    samples = [
        next((path for path in genre.iterdir() if path.is_file()), genre) for genre in genres
    ]
    return _readable("AUDIO_DIR", [*genres, *samples], folder)


def _scripts() -> Finding:
    """Check the files mounted from the checkout; under umask 077 other users cannot read them."""
    folder = REPOSITORY / "deploy" / "compose"
    return _readable("scripts", list(folder.iterdir()), folder)


def _readable(name: str, paths: list[Path], folder: Path) -> Finding:
    """Check that all other users may read the files and enter the folders."""
    for path in paths:
        wanted = 0o005 if path.is_dir() else 0o004
        if path.stat().st_mode & wanted != wanted:
            remedy = f"let the containers' users read it: `chmod -R o+rX {folder}`"
            return Finding(name, f"{path} is closed to other users", remedy)
    return Finding(name, f"{folder} can be read")


def _port(name: str, environment: Mapping[str, str], held: set[str]) -> Finding:
    text = environment.get(name) or str(PORTS[name])
    for other in PORTS:
        if other != name and text == (environment.get(other) or str(PORTS[other])):
            return Finding(name, f"port {text} is {other} too", f"set another {name} in .env")
    if text in held:
        return Finding(name, f"port {text} is the stack's")
    if not text.isdecimal() or not 0 < int(text) < 65536:
        return Finding(
            name, f"{text!r} is not a port", f"write a number below 65536 as {name} in .env"
        )
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", int(text)))
        except OSError as error:
            found = f"port {text}: {os.strerror(error.errno or 0)}"
            return Finding(name, found, f"stop what listens there, or set {name} in .env")
    return Finding(name, f"port {text} is free")


def _schedule(environment: Mapping[str, str]) -> Finding:
    """Say when the training runs; a value other than 1 or 0 would silently mean no."""
    text = environment.get("DAILY", "")
    if text not in ("", "0", "1"):
        return Finding("DAILY", f"{text!r} is neither 1 nor 0", "write 1 or 0 as DAILY in .env")
    return Finding("schedule", "daily at midnight UTC" if text == "1" else "on demand")


def _docker_way(environment: Mapping[str, str]) -> Finding:
    """Say what the profile `docker` implies, and whether there is a socket to mount."""
    path = Path(environment.get("DOCKER_SOCKET") or "/var/run/docker.sock")
    try:
        found = path.is_socket()
    except OSError:  # in a folder that is closed to us
        found = False
    if not found:
        remedy = "write the engine's socket as DOCKER_SOCKET in .env"
        return Finding("Docker way", f"{path} is not a socket", remedy)
    return Finding("Docker way", f"authors of DAGs are root on this machine, by {path}")


def _driver() -> Finding:
    if n_gpus := count_gpus():
        return Finding("GPU driver", f"names {n_gpus} GPUs")
    remedy = "install the NVIDIA driver, or take gpu.yml out of COMPOSE_FILE in .env"
    return Finding("GPU driver", "`nvidia-smi -L` names no GPU", remedy)


def _toolkit(info: Mapping[str, Any]) -> Finding:
    hook = shutil.which("nvidia-container-runtime-hook")
    if "nvidia" in info.get("Runtimes", {}) or hook:
        return Finding("GPU toolkit", "known to the engine")
    remedy = "install the NVIDIA Container Toolkit: `nvidia-ctk runtime configure`"
    return Finding("GPU toolkit", "the engine has no runtime named nvidia", remedy)
