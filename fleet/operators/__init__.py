"""The operators: a task as one command, in a process or in a container."""

from fleet.operators.command import CommandOperator

__all__ = ["CommandOperator"]
