"""The exceptions that this package raises on purpose.

MusicGenreError
├── InputError        fix your input: exit code 65
│   ├── AudioError    one file cannot be used: it becomes a row in rejected.csv
│   └── PictureError  one picture cannot be used: `scan` lists it in rejected.csv
└── TemporaryError    try again: exit code 75
    └── StoppedError  a signal asked this process to end; finished work is saved

Exit codes follow sysexits.h; usage errors come from click and exit with 64. Each message is one
line. It names the problem, the input, the value that was found, and the remedy.
"""

import signal
from pathlib import Path


class MusicGenreError(Exception):
    """Any error that this package raises on purpose."""

    exit_code: int = 65  # EX_DATAERR


class InputError(MusicGenreError):
    """The input, or its combination with the settings, is unusable; retrying will not help."""


class AudioError(InputError):
    """One audio file cannot be used; the stage goes on with the other files."""


class PictureError(InputError):
    """One picture cannot be used; `scan` rejects it and goes on with the other pictures.

    Args:
        path: the picture.
        reason: why the picture cannot be used.
        remedy: what the user can do about it.
    """

    def __init__(
        self, path: Path, reason: str, remedy: str = "delete the file and make it again"
    ) -> None:
        super().__init__(f"{path}: {reason}; {remedy}")
        self.reason = reason


class TemporaryError(MusicGenreError):
    """Nothing is wrong with the input; the same command can succeed later."""

    exit_code: int = 75  # EX_TEMPFAIL


class StoppedError(TemporaryError):
    """A signal asked this process to end; running the command again resumes the work.

    Args:
        message: the error line; it says how much is saved.
        by: name of the signal. SIGINT (Ctrl-C) sets exit code 130, which tells a shell that SIGINT
            ended the command.
    """

    def __init__(self, message: str, by: str = "SIGTERM") -> None:
        super().__init__(message)
        if by == signal.SIGINT.name:
            self.exit_code = 128 + signal.SIGINT
