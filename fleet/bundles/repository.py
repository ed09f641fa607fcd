"""DAG files from a Git repository.

The dag-processor must not wait for Git: if its loop stands still for 50 s, Airflow treats the DAGs
of all files as deleted. So each fetch is a process of its own, and the files in force stay until
the fetch has succeeded.
"""

import hashlib
import logging
import shutil
import subprocess
import tempfile
import time
import weakref
from pathlib import Path
from typing import IO, NamedTuple

from fleet import git
from fleet.bundles.snapshots import Tree, read_tree

EVERY_SECONDS = 10.0
"""Seconds from the end of a fetch to the start of the next fetch."""
FETCH_SECONDS = 120.0
"""Time limit of a fetch. Git itself gives up after about 30 s of silence."""
_REF = "refs/music-genre/dags"
log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where the DAG files are."""

    address: str
    """URL of the repository."""
    ref: str = "main"
    """Branch, tag or commit."""
    folder: str = ""
    """Folder inside the repository; empty for the whole repository."""


class Fetch:
    """A `git fetch` in a process of its own, with a time limit.

    Args:
        access: how to log in.
        clone: the clone into which it fetches.
        place: the repository, and the branch, tag or commit to fetch.
    """

    def __init__(self, access: git.Access, clone: Path, place: Place) -> None:
        words = ["fetch", "--quiet", "--depth=1", "--no-tags", "--force", "--no-recurse-submodules"]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 # `_end` closes it
        self._process = subprocess.Popen(
            git.command(access, *words, "--", place.address, f"{place.ref}:{_REF}"),
            cwd=clone,
            env=git.environment(access),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        self._give_up_at = time.monotonic() + FETCH_SECONDS
        # `_end` also runs if the dag-processor exits during a fetch.
        self._end = weakref.finalize(self, _end, self._process, self._output)

    def fault(self) -> str | None:
        """Return None while the fetch runs; then its error message, empty if it succeeded."""
        status = self._process.poll()
        if status is None and time.monotonic() < self._give_up_at:
            return None
        self._output.seek(0)
        said = self._output.read().decode("utf-8", "replace")
        self._end()
        if status is None:
            return f"no answer within {FETCH_SECONDS:.0f} s"
        return git.reason(said) if status else ""


def _end(process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    process.terminate()  # Git ends its own helper processes
    process.wait()
    output.close()


class Repository:
    """The files of one branch, tag or commit, kept up to date in a local clone.

    Args:
        place: where the files are.
        access: how to log in.
        folder: the folder in which the clone is kept. Clones of other places are deleted from it.
    """

    def __init__(self, place: Place, access: git.Access, folder: Path) -> None:
        self._place, self._access = place, access
        # Each address and ref has a clone of its own, so files of another address are never used.
        name = hashlib.sha256(f"{place.address} {place.ref}".encode()).hexdigest()[:12]
        self._clones, self._clone = folder, folder / name
        self._fetch: Fetch | None = None
        self._next_at = 0.0
        self._found: tuple[Tree, dict[str, str]] = ({}, {})
        self._fault = ""
        self._commit: str | None = None

    def state(self) -> str | None:
        """Begin or end a fetch, without waiting for it.

        Returns:
            The id of the commit whose files `tree` returns; None until a fetch has succeeded.

        Raises:
            OSError: the clone cannot be written, or the files exceed `snapshots.MAX_BYTES`.
        """
        if self._fetch is None and time.monotonic() >= self._next_at:
            self._prepare()
            self._fetch = Fetch(self._access, self._clone, self._place)
        fault = self._fetch.fault() if self._fetch else None
        if fault is not None:
            self._fetch, self._next_at = None, time.monotonic() + EVERY_SECONDS
            self._say(fault)
            if not fault:
                self._take()
        return self._commit

    @property
    def label(self) -> str:
        """The beginning of the newest commit's id."""
        return (self._commit or "")[:12]

    def tree(self) -> tuple[Tree, dict[str, str]]:
        """Return two dicts for the newest commit: the files, and unreadable file → the reason."""
        files, faults = self._found
        return dict(files), dict(faults)

    def _prepare(self) -> None:
        """Create the clone if it is missing, and delete clones of other places."""
        if not (self._clone / ".git").exists():
            self._clones.mkdir(parents=True, exist_ok=True)
            for other in self._clones.iterdir():
                shutil.rmtree(other, ignore_errors=True)
            self._run("init", "--quiet", str(self._clone), folder=self._clones)

    def _take(self) -> None:
        """Read the files of the fetched commit if the commit is new."""
        commit = self._run("rev-parse", f"{_REF}^{{commit}}").strip()
        if commit != self._commit:
            self._run("reset", "--quiet", "--hard", commit)
            self._run("clean", "-ffdxq")
            self._found = read_tree(self._clone / self._place.folder)
            self._commit = commit

    def _run(self, *words: str, folder: Path | None = None) -> str:
        """Run a Git command that needs no network.

        Raises:
            OSError: the command failed.
        """
        ended = subprocess.run(
            git.command(git.Access(), *words),
            cwd=folder or self._clone,
            env=git.environment(git.Access()),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if ended.returncode:
            raise OSError(f"git {words[0]}: {git.reason(ended.stderr)}")
        return ended.stdout

    def _say(self, fault: str) -> None:
        """Log a fault when it begins, and a line when it is over."""
        where = f"DAGs from {self._place.address} {self._place.ref}"
        # Git can report the same outage in other words at each attempt; log the outage only once.
        kind = "away" if git.is_away(fault) else fault
        if fault and kind != self._fault:
            log.error("error: %s: %s; the DAGs in force stay", where, fault)
        elif self._fault and not fault:
            log.info("%s: fetched again", where)
        self._fault = kind
