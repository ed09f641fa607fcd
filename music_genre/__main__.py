"""The `music-genre` command, also run as `python -m music_genre`."""

import os
import signal
import sys
import traceback

from music_genre.cli import commands
from music_genre.errors import StoppedError
from music_genre.store import signals

EXIT_CRASH = 70
"""Exit code of a crash, EX_SOFTWARE of sysexits.h; a retry might succeed.

The cause is a bug, a memory error or a driver error. Python's own exit code for a crash is 1, which
does not tell the caller whether to try again.
"""


def main() -> None:
    """Run the command given on the command line; exit with the command's exit code."""
    _open_what_is_closed()
    try:
        commands(prog_name="music-genre")
    except SystemExit as end:
        if end.code == 128 + signal.SIGINT:
            signals.leave(signal.SIGINT)
        if end.code == StoppedError.exit_code:
            sys.stdout.flush()
            # Skip Python's own shutdown, which takes up to 1.1 s once torch is loaded.
            signals.leave(signal.SIGTERM)
        raise
    except Exception:
        traceback.print_exc()
        sys.exit(EXIT_CRASH)


def _open_what_is_closed() -> None:
    """Open /dev/null for each closed standard stream, so that no other file gets its descriptor."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:
        sys.stderr = open(2, "w")  # noqa: SIM115


if __name__ == "__main__":
    main()
