"""How a stage reports its progress."""

from typing import Protocol


class Progress(Protocol):
    """Callback to which a stage reports its progress."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        """Report the number of units done, the total and, optionally, a line for the user."""


def silent(_done: int, _total: int, _note: str = "", /) -> None:
    """Ignore the progress report."""
