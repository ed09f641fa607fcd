"""How a process handles signals and the death of its parent."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

from music_genre.errors import StoppedError

STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SIG_DFL: Final = 0  # signal(2)
PR_SET_PDEATHSIG: Final = 1  # sys/prctl.h

GO_ON: Final = "run the same command again to continue"
GRACE: Final = 3.5
"""Seconds from a signal to the end of the process. `fleet` kills the process 4 s after SIGTERM,
because Airflow gives the task only 5 s."""


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent ends.

    Does nothing under nohup: a process that ignores SIGHUP is meant to outlive the shell. Does
    nothing for a child of init either: its parent has already died, or never will.

    Source: prctl(2). The kernel watches the parent's thread that started this process, and also
    sends the signal if only that thread ends.
    """
    parent = os.getppid()
    if parent <= 1 or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return
    set_parent_death_signal(number)
    if os.getppid() != parent:  # the parent died meanwhile
        os.kill(os.getpid(), number)


def set_parent_death_signal(number: signal.Signals) -> None:
    """Ask the kernel for a signal at the parent's death."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def heard() -> list[signal.Signals]:
    """List the signals that end this process; under nohup, SIGHUP is not among them."""
    ignores = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOPPING if number != signal.SIGHUP or not ignores]


def leave(number: int) -> NoReturn:
    """End this process with the retry exit code; after Ctrl-C, let SIGINT kill it.

    A loop in a shell goes on after Ctrl-C unless SIGINT killed the command. Python can restore a
    signal's default action only in its main thread; the C library can do so in any thread.
    """
    if number == signal.SIGINT:
        ctypes.CDLL(None).signal(number, SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(StoppedError.exit_code)


def end_at_once(number: int, done: str = "") -> NoReturn:
    """Write one line and end this process as `leave` does.

    An exception would not do: a library that is being imported can swallow it. This function works
    in any thread. All writes of this package are atomic: at most a temporary file is left, and the
    next run sweeps it away.
    """
    reason = f"stopped by {signal.Signals(number).name} {done}".rstrip()
    line = f"error: {reason}; {GO_ON}\n"
    try:
        os.write(2, (f"\n{line}" if sys.stderr.isatty() else line).encode())  # below progress bar
    finally:  # even if nobody reads the line any more
        leave(number)


class Stop:
    """A request to stop; a loop obeys it as soon as it can."""

    name = ""
    """Name of the signal that arrived; empty until then."""


@contextmanager
def stops(where: Callable[[], str]) -> Iterator[Stop]:
    """Turn SIGTERM, SIGINT and SIGHUP into a request to stop while the block runs.

    The loop has `GRACE` seconds to obey. Python runs a signal handler only between two bytecode
    instructions, and the backward pass of a large model is a single instruction that may take many
    seconds. So a second thread learns of the signal from the file descriptor that Python's C-level
    handler writes to. That thread changes nothing: it waits, then ends the process.

    Args:
        where: returns how far the work is and how much of it is saved, for the process's last
            line; called from the second thread.
    """
    stop, over = Stop(), threading.Event()

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.name = signal.Signals(number).name

    def watch() -> None:
        while number := os.read(reading, 1):
            if number[0] in STOPPING and not over.wait(GRACE):
                end_at_once(number[0], where())

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, handle) for number in heard()}
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        over.set()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(former)
        os.close(writing)  # ends the watcher
        watcher.join()
        os.close(reading)
