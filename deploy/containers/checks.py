"""Check whether a machine can run the Compose stack; each check gives a finding and a remedy."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.containers import dags_git
from deploy.containers.engine import docker
from deploy.containers.env_checks import Finding, of_variables, readable
from deploy.containers.environment import count_gpus, profiles_of
from deploy.errors import DeployError
from deploy.places import REPOSITORY

GIB = 1024**3
MIN_ENGINE, MIN_COMPOSE, MIN_BUILDX = (20, 10), (2, 20), (0, 8)
MIN_CORES, MIN_MEMORY_GIB, MIN_DISK_GIB, MIN_DISK_GIB_BUILT = 2, 6, 25, 3
"""The idle stack takes 1.5 GiB of memory; a training on a CPU takes 1 to 2 GiB more. The Docker
images take 9 GiB of disk; `MIN_DISK_GIB_BUILT` applies if they are already built."""
LARGEST_IMAGE = "music-genre/gpu-worker"
MAX_SKEW_SECONDS = 5
"""Airflow refuses a token if the clocks of its issuer and its reader differ by 10 s."""


def check(
    settings: Callable[[], Mapping[str, str]], held_ports: Callable[[], set[int]]
) -> list[Finding]:
    """Run all checks.

    Args:
        settings: returns the variables of .env.
        held_ports: returns the ports that the stack itself uses. `settings` and `held_ports` are
            called only if a suitable Compose is installed.

    Raises:
        DeployError: the engine does not answer, or .env cannot be read. The other checks then do
            not run.
    """
    if podman := _podman():
        return [podman]
    info: dict[str, Any] = json.loads(docker("info", "--format", "{{json .}}"))
    compose = _plugin("Compose", "compose", "version", "--short", least=MIN_COMPOSE)
    findings = [
        _version("Docker engine", str(info["ServerVersion"]), MIN_ENGINE),
        compose,
        _plugin("buildx", "buildx", "version", least=MIN_BUILDX),
        _at_least("cores", int(info["NCPU"]), MIN_CORES, ""),
        _at_least("memory", round(info["MemTotal"] / GIB, 1), MIN_MEMORY_GIB, " GiB"),
        _clock(info["SystemTime"]),
        _scripts(),
    ]
    return findings if compose.remedy else findings + _of_settings(settings(), held_ports, info)


def _of_settings(
    environment: Mapping[str, str], held_ports: Callable[[], set[int]], info: Mapping[str, Any]
) -> list[Finding]:
    held = {str(port) for port in held_ports()}
    findings = [_disk(Path(info["DockerRootDir"]), environment), *of_variables(environment, held)]
    if (of_git := dags_git.check(environment)).found:
        findings.append(of_git)
    if "docker" in profiles_of(environment):
        findings.append(_docker_way(environment))
    if "gpu.yml" in environment.get("COMPOSE_FILE", ""):
        findings += [_driver(), _toolkit(info)]
    return findings


def _podman() -> Finding | None:
    """Detect Podman as the `docker` command itself, or as the engine that the command reaches."""
    said = docker("--version") + docker("version", "--format", "{{json .}}")
    if "podman" not in said.lower():
        return None
    remedy = "install Docker Engine 20.10 or later; the stack is not tested with Podman"
    return Finding("Docker engine", "this is Podman", remedy)


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
    # With Docker Desktop the folder is in a virtual machine; then this machine's disk is checked.
    looked_at = folder if folder.exists() else REPOSITORY
    free = shutil.disk_usage(looked_at).free / GIB
    built = docker("image", "ls", "-q", f"{LARGEST_IMAGE}:{environment.get('TAG') or 'latest'}")
    least = MIN_DISK_GIB_BUILT if built else MIN_DISK_GIB
    remedy = f"free {least} GiB of disk space; `docker system df` shows what Docker uses"
    remedy = "" if free >= least else remedy
    return Finding("disk", f"{free:.0f} GiB free in {looked_at}", remedy)


def _clock(engine_time: str) -> Finding:
    # Drop the fraction of a second: it can have nine digits, but Python reads only six.
    without_fraction = re.sub(r"\.\d+", "", engine_time)
    skew = abs((datetime.fromisoformat(without_fraction) - datetime.now(UTC)).total_seconds())
    remedy = "" if skew <= MAX_SKEW_SECONDS else "synchronise both clocks by NTP"
    return Finding(
        "clock", f"the engine's clock differs from this machine's by {skew:.0f} s", remedy
    )


def _scripts() -> Finding:
    """Check that other users can read the mounted files; a checkout with umask 077 prevents it."""
    folder = REPOSITORY / "deploy"
    mounted = [*(folder / "compose").iterdir(), folder / "redis-users.sh", folder / "queues.toml"]
    dags = REPOSITORY / "dags"
    closed = readable("DAGs", [dags, *dags.glob("*.py")], dags)
    return closed if closed.remedy else readable("scripts", mounted, folder)


def _docker_way(environment: Mapping[str, str]) -> Finding:
    """Check that the engine's socket exists, and warn that it lets DAG authors become root."""
    path = Path(environment.get("DOCKER_SOCKET") or "/var/run/docker.sock")
    try:
        found = path.is_socket()
    except OSError:  # this user has no permission to enter the socket's folder
        found = False
    if not found:
        remedy = "set DOCKER_SOCKET in .env to the path of the engine's socket"
        return Finding("Docker way", f"{path} is not a socket", remedy)
    return Finding("Docker way", f"DAG authors can become root on this machine through {path}")


def _driver() -> Finding:
    if n_gpus := count_gpus():
        return Finding("GPU driver", f"lists {n_gpus} GPUs")
    remedy = "install the NVIDIA driver, or remove gpu.yml from COMPOSE_FILE in .env"
    return Finding("GPU driver", "`nvidia-smi -L` lists no GPU", remedy)


def _toolkit(info: Mapping[str, Any]) -> Finding:
    hook = shutil.which("nvidia-container-runtime-hook")
    if "nvidia" in info.get("Runtimes", {}) or hook:
        return Finding("GPU toolkit", "found in the engine")
    remedy = "install the NVIDIA Container Toolkit and run `nvidia-ctk runtime configure`"
    return Finding("GPU toolkit", "the engine has no runtime named nvidia", remedy)
