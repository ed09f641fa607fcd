"""How a stage says how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Told by a stage how far it is."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        """Take the units done, the units in all, and perhaps a line for people."""


def silent(_done: int, _total: int, _note: str = "", /) -> None:
    """Tell nobody."""
