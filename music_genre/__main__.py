"""The `music-genre` command, also run as `python -m music_genre`."""

import sys
import traceback

from music_genre.cli import commands

EXIT_CRASH = 70
"""EX_SOFTWARE of sysexits.h: a fault of ours, or of memory or a driver, that a retry may pass.

Python's own status for a crash is 1, which here means that the input must be mended.
"""


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        commands(prog_name="music-genre")
    except Exception:
        traceback.print_exc()
        sys.exit(EXIT_CRASH)


if __name__ == "__main__":
    main()
