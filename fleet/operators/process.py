"""Run one command so that the command and its descendants cannot outlive the task's process.

The reasons for this design, measured on Airflow 3.3.2: Airflow kills a task by SIGTERM, then by
SIGKILL after five seconds. A child in its own session, such as the command, survives both signals.
After `kill -9` of a task's supervisor, the task's processes live on. So the task's process and the
command each get a parent-death signal. The task's process also adopts the command's orphans (child
subreaper), so that it can kill them.
"""

import contextlib
import itertools
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

import psutil

from fleet.kernel import HANDS_BACK, PR_SET_CHILD_SUBREAPER, PR_SET_NAME, PR_SET_PDEATHSIG, prctl

TERM_GRACE_SECONDS = 4.0
"""Time between SIGTERM and SIGKILL for the command. The trainer saves and ends within 3.5 s.
Airflow kills the task's process after 5 s."""
STATE_SECONDS = 30.0
"""Interval at which the state of an overwritten line (a progress bar) is passed on."""
MAX_LINE_BYTES = 64 * 1024
"""A line longer than this is passed on in pieces, so that an endless line cannot fill memory."""
_READ_BYTES = 64 * 1024

LineSink = Callable[[str], None]


class Lines:
    """Splits a stream of bytes into lines of text, and passes on each line as it arrives.

    A carriage return overwrites the text before it, so only the newest text of a line is passed on.
    """

    def __init__(self, sink: LineSink) -> None:
        self._sink = sink
        self._pending = b""
        self._shown = ""

    def feed(self, chunk: bytes) -> None:
        """Pass on the lines that a chunk completes, and pieces of a line that is too long."""
        *lines, rest = (self._pending + chunk).split(b"\n")
        if b"\r" in rest:
            rest = b"\r" + _newest(rest) + (b"\r" if rest.endswith(b"\r") else b"")
        *pieces, self._pending = _cut(rest)
        for piece in itertools.chain(*map(_cut, lines), pieces):
            self._sink(_text(piece))

    def show_state(self) -> None:
        """Pass on the state of a line that is being overwritten, if it has changed."""
        state = _text(self._pending)
        if b"\r" in self._pending and state not in ("", self._shown):
            self._shown = state
            self._sink(state)

    def flush(self) -> None:
        """Pass on a last line that has no line end."""
        if self._pending:
            self._sink(_text(self._pending))
            self._pending = b""


def _cut(line: bytes) -> list[bytes]:
    starts = range(0, max(1, len(line)), MAX_LINE_BYTES)
    return [line[start : start + MAX_LINE_BYTES] for start in starts]


def _newest(line: bytes) -> bytes:
    """The text that remains visible after a line's carriage returns."""
    return next((part for part in reversed(line.split(b"\r")) if part), b"")


def _text(line: bytes) -> str:
    return _newest(line).decode("utf-8", "replace")


def become_task_of_a_command() -> None:
    """Have this process killed when its parent dies, and make it adopt orphaned descendants.

    The process also takes the name `HANDS_BACK`. The name tells a stopping worker that the task of
    this process is rescheduled on SIGTERM.

    Raises:
        OSError: the kernel refused (prctl(2)).
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_NAME, HANDS_BACK.encode())


class CommandProcess:
    """One command: reads its output line by line, and ends the command with all its descendants.

    Args:
        command: program and arguments; no shell.
        environment: the whole environment of the command.

    Raises:
        FileNotFoundError: the program is not on the environment's PATH.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        search_path = environment.get("PATH", os.defpath)
        if shutil.which(command[0], path=search_path) is None:
            raise FileNotFoundError(f"{command[0]!r} is not on this worker's PATH ({search_path})")
        self._kill_at: float | None = None
        self._not_ours = {child.pid for child in psutil.Process().children(recursive=True)}
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def terminate(self) -> None:
        """Send SIGTERM to the command and start its grace period; safe in a signal handler."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + TERM_GRACE_SECONDS
            self._process.send_signal(signal.SIGTERM)

    def stream(self, on_stdout: LineSink, on_stderr: LineSink) -> int:
        """Pass on every line until the command ends, then kill its remaining descendants.

        A descendant that keeps a pipe open does not block this method: once the command has ended,
        its descendants are killed and the pipes are drained. The command and its descendants are
        also killed if the command outlives its grace period after `terminate`.

        Returns:
            The exit status; -N means that signal N ended the command, as in subprocess.
        """
        pidfd = os.pidfd_open(self._process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                pipes = _Pipes(selector, self._process, on_stdout, on_stderr)
                selector.register(pidfd, selectors.EVENT_READ)
                while not pipes.read_ready(timeout=0.5, until=pidfd):
                    if self._kill_at is not None and time.monotonic() >= self._kill_at:
                        self.kill_tree()
                status = self._process.wait()
                self.kill_tree()
                pipes.drain()
                return status
        finally:
            os.close(pidfd)
            self.kill_tree()

    def kill_tree(self) -> None:
        """Kill the command and all its descendants, including adopted orphans.

        Returns once all are dead, or after 2 s if the kernel cannot kill one of them (state D).
        """
        give_up_at = time.monotonic() + 2.0
        while (victims := self._living()) and time.monotonic() < give_up_at:
            for victim in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
            time.sleep(0.01)

    def _living(self) -> list[psutil.Process]:
        """List this process's running descendants, except any that existed before the command.

        Ended descendants are not reaped here: `subprocess` must reap the command, to get its exit
        status.
        """
        children = psutil.Process().children(recursive=True)
        return [child for child in children if child.pid not in self._not_ours and _runs(child)]


class _Pipes:
    """The command's two output pipes, split into lines as data arrives."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        process: subprocess.Popen[bytes],
        on_stdout: LineSink,
        on_stderr: LineSink,
    ) -> None:
        self._selector = selector
        self._lines: dict[int, Lines] = {}
        self._progress = Lines(on_stderr)
        self._show_at = time.monotonic() + STATE_SECONDS
        for pipe, lines in ((process.stdout, Lines(on_stdout)), (process.stderr, self._progress)):
            if pipe is not None:
                self._register(pipe.fileno(), lines)

    def _register(self, fd: int, lines: Lines) -> None:
        os.set_blocking(fd, False)
        self._lines[fd] = lines
        self._selector.register(fd, selectors.EVENT_READ)

    def read_ready(self, timeout: float, until: int) -> bool:
        """Read what arrives within the timeout; returns whether the descriptor `until` is ready."""
        ended = False
        for key, _ in self._selector.select(timeout):
            if key.fd == until:
                ended = True
            else:
                self._read(key.fd)
        if time.monotonic() >= self._show_at:
            self._show_at = time.monotonic() + STATE_SECONDS
            self._progress.show_state()
        return ended

    def drain(self) -> None:
        """Read until the pipes are empty, and pass on the last unfinished lines."""
        for fd in [fd for fd in self._lines if fd in self._selector.get_map()]:
            while self._read(fd):
                pass
            self._lines[fd].flush()

    def _read(self, fd: int) -> bool:
        try:
            chunk = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._selector.unregister(fd)
            self._lines[fd].flush()
            return False
        self._lines[fd].feed(chunk)
        return True


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
