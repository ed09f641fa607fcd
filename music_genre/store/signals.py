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
"""Maximum seconds from a signal to the end of the process. `fleet` kills the process 4 s after
SIGTERM, because Airflow gives the task only 5 s to end."""


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent ends.

    This function does nothing under nohup: a process that ignores SIGHUP is meant to outlive the
    shell. It also does nothing if the parent is init: either the real parent has already died, or
    init is the real parent and never ends.

    Source: prctl(2). The kernel watches only the thread that started this process. When that thread
    ends, the kernel sends the signal, even if the rest of the parent process lives on.
    """
    parent = os.getppid()
    if parent <= 1 or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return
    set_parent_death_signal(number)
    if os.getppid() != parent:  # the parent died before prctl was called
        os.kill(os.getpid(), number)


def set_parent_death_signal(number: signal.Signals) -> None:
    """Ask the kernel to send this process a signal when its parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def heard() -> list[signal.Signals]:
    """List the signals that end this process; under nohup, SIGHUP is not among them."""
    ignores = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOPPING if number != signal.SIGHUP or not ignores]


def leave(number: int) -> NoReturn:
    """End this process with the retry exit code; after Ctrl-C, let SIGINT kill it.

    Ctrl-C stops a shell loop only if SIGINT killed the command. The default action of SIGINT is
    restored through the C library, because Python can do that only in its main thread.
    """
    if number == signal.SIGINT:
        ctypes.CDLL(None).signal(number, SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(StoppedError.exit_code)


def end_at_once(number: int, done: str = "") -> NoReturn:
    """Write one line and end this process as `leave` does.

    Raising an exception would not be safe: a library that is being imported can swallow it. This
    function works in any thread. All writes of this package are atomic: at most one temporary file
    is left, and the next run removes it.
    """
    reason = f"stopped by {signal.Signals(number).name} {done}".rstrip()
    line = f"error: {reason}; {GO_ON}\n"
    try:
        # On a terminal, write below the progress bar.
        os.write(2, (f"\n{line}" if sys.stderr.isatty() else line).encode())
    finally:  # end even if stderr cannot be written
        leave(number)


class Stop:
    """A request to stop; the running loop checks it and stops as soon as possible."""

    name = ""
    """Name of the signal that arrived; empty if none has arrived yet."""


@contextmanager
def stops(where: Callable[[], str]) -> Iterator[Stop]:
    """Turn SIGTERM, SIGINT and SIGHUP into a request to stop while the block runs.

    The block has `GRACE` seconds to end. Python runs a signal handler only between two bytecode
    instructions, and the backward pass of a large model is a single instruction that can take many
    seconds. So Python's C-level handler also writes the signal's number to a pipe, and a second
    thread reads that pipe. If the block has not ended after `GRACE` seconds, this thread ends the
    process.

    Args:
        where: returns a phrase: how much of the work is done and how much is saved. The second
            thread puts this phrase into the last line that the process writes.
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
