"""Run the `docker` command, and report each fault in one line."""

import subprocess

from deploy.errors import DeployError


def docker(*words: str) -> str:
    """Run the docker command; returns its output.

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
