"""Show the progress of a stage: a bar on a terminal, otherwise log lines."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from music_genre.progress import Progress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
"""Seconds between two progress lines of a stage, if there is no terminal to show a bar."""
BAR = "{desc}: {percentage:3.0f}% |{bar:20}| {n_fmt} of {total_fmt}, {remaining} left"


@contextmanager
def shown_progress(label: str, every: float = SECONDS_BETWEEN_LINES) -> Iterator[Progress]:
    """Show a stage's progress: a bar on a terminal, otherwise log lines.

    On a terminal, log lines and the stage's notes appear above the bar and stay visible. Without
    a terminal, each note is logged at once; progress without a note is logged only if `every`
    seconds have passed since the last line.
    """
    if not sys.stderr.isatty():
        yield _lines(label, every)
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    tqdm.monitor_interval = 0  # no monitor thread: a process that forks must have no other threads
    with (
        tqdm(total=0, desc=label, bar_format=BAR, leave=False, file=sys.stderr) as bar,
        logging_redirect_tqdm(),
    ):

        def show(done: int, total: int, note: str = "", /) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if note:
                bar.write(note, file=sys.stderr)

        yield show


def _lines(label: str, every: float) -> Progress:
    last = time.monotonic()

    def show(done: int, total: int, note: str = "", /) -> None:
        nonlocal last
        if note:
            last = time.monotonic()
            logger.info(note)
        elif time.monotonic() - last >= every:
            last = time.monotonic()
            logger.info("%s: %d of %d", label, done, total)

    return show
