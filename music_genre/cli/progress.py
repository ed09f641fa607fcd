"""How far a stage is: a bar on a terminal, lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from music_genre.config import Progress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
"""How often a stage says how far it is where no terminal shows a bar."""


@contextmanager
def shown_progress(label: str, every: float = SECONDS_BETWEEN_LINES) -> Iterator[Progress]:
    """Show how far a stage is: a bar on a terminal, else a line now and then, or for each note."""
    if not sys.stderr.isatty():
        yield _lines(label, every)
        return
    with click.progressbar(
        length=0, label=label, file=sys.stderr, item_show_func=lambda note: note or ""
    ) as bar:
        shown = ""

        def show(done: int, total: int, note: str = "", /) -> None:
            nonlocal shown
            shown = note or shown
            bar.length = total
            bar.update(done - bar.pos, shown)

        yield show


def _lines(label: str, every: float) -> Progress:
    last = time.monotonic()

    def show(done: int, total: int, note: str = "", /) -> None:
        nonlocal last
        if note:
            logger.info(note)
        elif time.monotonic() - last >= every:
            last = time.monotonic()
            logger.info("%s: %d of %d", label, done, total)

    return show
