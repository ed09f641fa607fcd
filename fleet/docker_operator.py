"""The old address of the Docker operator, for one release: it is in `fleet.operators.docker`."""

from fleet.operators.docker import ResumableDockerOperator

__all__ = ["ResumableDockerOperator"]
