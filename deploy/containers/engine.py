"""Run the `docker` command, and report each fault in one line."""

import subprocess
from collections.abc import Mapping

from deploy.errors import DeployError
from deploy.places import REPOSITORY


class DockerError(DeployError):
    """The docker command failed.

    Attributes:
        said: the command's own message, from its standard error.
    """

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


def docker(
    *words: str,
    text: str = "",
    environment: Mapping[str, str] | None = None,
    errors: bool = False,
    seconds: float = 20.0,
) -> str:
    """Run the docker command; returns its output.

    Args:
        words: the command's arguments.
        text: its standard input.
        environment: its environment variables; by default this shell's.
        errors: whether to return its standard error too.
        seconds: how long to wait for the command to end.

    Raises:
        DeployError: the command is missing, fails, or does not end in time.
    """
    try:
        answer = subprocess.run(
            ["docker", *words],
            input=text,
            env=environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except FileNotFoundError:
        raise DeployError("the docker command is missing; install Docker Engine") from None
    except subprocess.TimeoutExpired:
        raise DeployError(
            f"the Docker engine has not answered for {seconds:.0f} s; restart it"
        ) from None
    if answer.returncode == 0:
        return (answer.stdout + (answer.stderr if errors else "")).strip()
    said = " ".join(answer.stderr.split())
    if "permission denied while trying to connect" in said:
        raise DeployError(
            f"this user has no access to the Docker engine ({said}); run as root, or add the user "
            "to the group docker"
        )
    if "Cannot connect" in said:
        raise DeployError(f"the Docker engine does not answer ({said}); start it")
    raise DockerError(f"`docker {' '.join(words)}` failed: {said}", said)
