"""Old location of the Docker operator, kept for one release; now `fleet.operators.docker`."""

from fleet.operators.docker import ResumableDockerOperator

__all__ = ["ResumableDockerOperator"]
