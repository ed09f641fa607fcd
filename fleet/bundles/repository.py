"""DAG files from a Git repository, fetched by processes of their own.

The dag-processor must not wait for Git: if its loop stands still for 50 s, Airflow treats the DAGs
of all files as deleted. The files in force stay until a fetch has succeeded.
"""

import logging
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import IO

from fleet.bundles.fetching import AWAY, LEFT_OVER, Place, Task
from fleet.bundles.snapshots import Tree, read_tar
from fleet.git import Access

EVERY_SECONDS = 10.0
"""Seconds from the end of a fetch to the beginning of the next one."""
REFUSED_SECONDS = 60.0
"""Seconds until the next fetch after a fault other than a silent host, such as too many files."""
FETCH_SECONDS = 300.0
"""Time limit of a fetch. If the host is silent, Git itself gives up after about 30 s."""
log = logging.getLogger(__name__)


class Fetch:
    """A running `fleet.bundles.fetching`."""

    def __init__(self, task: Task) -> None:
        # `_end` closes the two files.
        self._outputs = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fleet.bundles.fetching", task.to_json()],
            stdin=subprocess.DEVNULL,
            stdout=self._outputs[0],
            stderr=self._outputs[1],
        )
        self._give_up_at = time.monotonic() + FETCH_SECONDS
        # Also called when the dag-processor ends during a fetch.
        self._end = weakref.finalize(self, _end, self._process, self._outputs)

    def result(self) -> tuple[str, str, bool] | None:
        """Return None while it runs.

        Returns:
            The commit, empty after a fault; the fault, empty if there was none; and whether the
            fault is that the host does not answer.
        """
        status = self._process.poll()
        if status is None and time.monotonic() < self._give_up_at:
            return None
        commit, fault = map(_text, self._outputs)
        self._end()
        if status is None:
            return "", f"not finished within {FETCH_SECONDS:.0f} s", True
        if status == 0:
            return commit, "", False
        last = (fault.splitlines() or [f"the fetch ended with exit status {status}"])[-1]
        return "", last, status == AWAY


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace").strip()


def _end(process: subprocess.Popen[bytes], outputs: tuple[IO[bytes], IO[bytes]]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
    for file in outputs:
        file.close()


class Repository:
    """The files of one branch, tag or commit.

    Args:
        place: where the files are.
        access: how to log in.
        folder: where fetches keep their files.
    """

    def __init__(self, place: Place, access: Access, folder: Path) -> None:
        self._place, self._access = place, access
        self._folder, self._tar = folder, folder / "fetched.tar"
        self._fetch: Fetch | None = None
        self._next_at = 0.0
        self._found: tuple[Tree, dict[str, str]] = ({}, {})
        self._fault = ""
        self._commit = ""

    def state(self) -> str | None:
        """Begin or end a fetch, without waiting for it.

        Returns:
            The id of the commit whose files `tree` returns; None until a fetch has succeeded.

        Raises:
            OSError: the fetched files cannot be read, or exceed `snapshots.MAX_BYTES`.
        """
        if self._fetch is None and self._is_due():
            self._clean()
            task = Task(self._place, self._access, self._commit, str(self._tar))
            self._fetch = Fetch(task)
        found = self._fetch.result() if self._fetch else None
        if found is not None:
            commit, fault, is_away = found
            is_refused = fault and not is_away
            wait = REFUSED_SECONDS if is_refused else EVERY_SECONDS
            self._fetch, self._next_at = None, time.monotonic() + wait
            self._say(fault, "away" if is_away else fault)
            if commit and commit != self._commit:
                self._found = read_tar(self._tar)
                self._commit = commit
        return self._commit or None

    def _is_due(self) -> bool:
        is_fixed = self._place.is_commit and self._commit
        return not is_fixed and time.monotonic() >= self._next_at

    def _clean(self) -> None:
        """Delete what killed fetches have left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob(LEFT_OVER):
            shutil.rmtree(old, ignore_errors=True)

    @property
    def label(self) -> str:
        """The beginning of the newest commit's id."""
        return self._commit[:12]

    def tree(self) -> tuple[Tree, dict[str, str]]:
        """Return two dicts for the newest commit: the files, and unreadable file → the reason."""
        files, faults = self._found
        return dict(files), dict(faults)

    def _say(self, fault: str, kind: str) -> None:
        """Log a fault when it begins, and a line when it is over.

        Args:
            fault: the fault, empty if there is none. Git describes a host that is away in other
                words at each attempt.
            kind: a text that is the same as long as the fault is.
        """
        where = f"DAGs from {self._place.address} {self._place.ref}"
        if fault and kind != self._fault:
            log.error("error: %s: %s; the DAGs in force stay", where, fault)
        elif self._fault and not fault:
            log.info("%s: fetched again", where)
        self._fault = kind
