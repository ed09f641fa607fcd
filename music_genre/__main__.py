"""The `music-genre` command, also run as `python -m music_genre`."""

import os
import signal
import sys
import traceback

from music_genre.cli import commands
from music_genre.errors import StoppedError
from music_genre.store import signals

EXIT_CRASH = 70
"""EX_SOFTWARE of sysexits.h: a bug, or a failure of memory or of a driver; a retry may succeed.

It replaces 1, Python's own exit code for a crash, which does not tell the caller what to do.
"""


def main() -> None:
    """Run the command line and exit with its code."""
    _open_what_is_closed()
    try:
        commands(prog_name="music-genre")
    except SystemExit as end:
        if end.code == 128 + signal.SIGINT:
            signals.leave(signal.SIGINT)
        if end.code == StoppedError.exit_code:
            sys.stdout.flush()
            signals.leave(signal.SIGTERM)  # with torch loaded, Python's own exit takes up to 1.1 s
        raise
    except Exception:
        traceback.print_exc()
        sys.exit(EXIT_CRASH)


def _open_what_is_closed() -> None:
    """Open /dev/null for each closed standard stream, before another file gets its descriptor."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:
        sys.stderr = open(2, "w")  # noqa: SIM115


if __name__ == "__main__":
    main()
