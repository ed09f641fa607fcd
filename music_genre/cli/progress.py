"""Progress of a stage: a bar on a terminal, lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from music_genre.progress import Progress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
"""How often a stage logs its progress if there is no terminal to show a bar."""
BAR = "{desc}: {percentage:3.0f}% |{bar:20}| {n_fmt} of {total_fmt}, {remaining} left"


@contextmanager
def shown_progress(label: str, every: float = SECONDS_BETWEEN_LINES) -> Iterator[Progress]:
    """Show a stage's progress: a bar on a terminal, log lines elsewhere.

    On a terminal, notes and log lines appear above the bar and stay visible. Elsewhere, each note
    is logged, and so is the progress if `every` seconds have passed since the last line.
    """
    if not sys.stderr.isatty():
        yield _lines(label, every)
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    tqdm.monitor_interval = 0  # no monitor thread, because this process may fork
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
