"""Set attributes of this process with prctl(2), a system call of Linux."""

import ctypes
import os

PR_SET_PDEATHSIG = 1
"""Sets the signal that this process gets when the thread that started the process ends."""
PR_SET_NAME = 15
"""Sets the name of this process in `ps` and similar tools, at most 15 bytes."""
PR_SET_CHILD_SUBREAPER = 36
"""Sets whether this process becomes the parent of its orphaned descendants."""
HANDS_BACK = "hands back"
"""Name of a process whose task is rescheduled on SIGTERM, without using up a retry."""


def prctl(option: int, value: int | bytes) -> None:
    """Set one of this process's attributes.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl({option})")
