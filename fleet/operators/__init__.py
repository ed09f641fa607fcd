"""The operators: each task runs one command, in a process or in a container."""

from fleet.operators.command import CommandOperator

__all__ = ["CommandOperator"]
