"""Everything this package raises on purpose.

MusicGenreError
├── InputError        fix your input: exit code 1
│   └── AudioError    one file cannot be used: it becomes a row in rejected.csv
└── TemporaryError    try again: exit code 75
    └── StoppedError  a signal asked this process to end; what was done is saved

Usage errors (exit code 2) are click's own. A message is one line: what, which, found, remedy.
"""

from typing import ClassVar


class MusicGenreError(Exception):
    """Any error this package raises on purpose."""

    exit_code: ClassVar[int] = 1


class InputError(MusicGenreError):
    """The input or its combination with the settings cannot work; retrying will not help."""


class AudioError(InputError):
    """One audio file cannot be used; the batch goes on without it."""


class TemporaryError(MusicGenreError):
    """Nothing is wrong with the input; the same command may succeed later."""

    exit_code: ClassVar[int] = 75  # EX_TEMPFAIL of sysexits.h


class StoppedError(TemporaryError):
    """A signal asked this process to end; the same command goes on from where it was."""
