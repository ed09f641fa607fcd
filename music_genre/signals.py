"""What a process does about signals, and about the death of its parent."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from music_genre.errors import StoppedError

STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG: Final = 1  # sys/prctl.h

GO_ON: Final = "run the same command again to go on"
PATIENCE: Final = 0.5
"""Seconds that a step may still take after a signal; then its start is saved instead."""


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent, or the thread of it, ends.

    Not under nohup: who ignores SIGHUP wants to outlive the shell. And not a child of init,
    whose parent has died already or never will.

    Source: prctl(2); it is the thread that started this process whose end counts.
    """
    parent = os.getppid()
    if parent <= 1 or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return
    set_parent_death_signal(number)
    if os.getppid() != parent:  # it died meanwhile
        os.kill(os.getpid(), number)


def set_parent_death_signal(number: signal.Signals) -> None:
    """Ask the kernel for a signal at the parent's death."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def end_at_once(reason: str) -> None:
    """Write one line and end this process with the code for trying again.

    Unlike an exception it cannot be lost in a library that is just being imported, and it works
    in any thread. All writes of this package are atomic: at most a temporary
    file stays, which the next run sweeps away.
    """
    line = f"error: {reason}; {GO_ON}\n"
    try:
        # Leave the bar's line, and show the cursor that it hid.
        os.write(2, (f"\n{line}\x1b[?25h" if sys.stderr.isatty() else line).encode())
    finally:  # also where nobody reads the line any more
        os._exit(StoppedError.exit_code)


class Stop:
    """A request to stop, by a signal; whoever comes first of two threads serves it."""

    def __init__(self) -> None:
        """Begin without a request."""
        self.name = ""
        self._lock = threading.Lock()
        self._served = threading.Event()

    def serve(self) -> bool:
        """Tell whether there is a request that nobody serves yet; true only once."""
        with self._lock:
            serves = bool(self.name) and not self._served.is_set()
            if serves:
                self._served.set()
            return serves

    def watch(self, wakeup: int, save: Callable[[], str]) -> None:
        """Wait for a signal; save and end the process if nobody serves it in time."""
        while number := os.read(wakeup, 1):
            if number[0] in STOPPING:
                self.name = signal.Signals(number[0]).name
                self._served.wait(PATIENCE)
                if self.serve():
                    end_at_once(f"stopped by {self.name} {_saved(save)}")


def _saved(save: Callable[[], str]) -> str:
    """Save, or say why not: whatever goes wrong, the process ends."""
    try:
        return save()
    except Exception as error:
        return f"without saving ({' '.join(str(error).split())})"


@contextmanager
def stops(save: Callable[[], str]) -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into a request to stop, while steps are taken.

    Python runs a signal's handler only between two of its own instructions, and the backward
    pass of a large model is a single one that may take many seconds. So a second thread learns
    of the signal from the file descriptor that Python's own handler in C writes to.

    Args:
        save: saves what is done, from the second thread, and says what that is.
    """
    stop = Stop()

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.name = signal.Signals(number).name

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, handle) for number in STOPPING}
    watcher = threading.Thread(target=stop.watch, args=(reading, save), daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(former)
        os.close(writing)  # ends the watcher
        watcher.join()
        os.close(reading)
