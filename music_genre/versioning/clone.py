"""A task's own clone of the repository of versions, removed when the task ends."""

import contextlib
import fcntl
import logging
import os
import random
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from music_genre.errors import InputError, MusicGenreError, TemporaryError
from music_genre.store import files
from music_genre.versioning import git
from music_genre.versioning.access import Access

logger = logging.getLogger(__name__)

ATTEMPTS: Final = 20
"""Maximum number of times that a push is tried if other processes keep pushing first."""
OWN: Final = f"{files.TEMPORARY}{os.uname().nodename}-"
"""Prefix of the names of this host's clones."""
OLD_SECONDS: Final = 86_400.0
"""A clone older than this many seconds counts as abandoned, because no task takes a day."""


class Clone:
    """A clone of the repository, with the files of one commit."""

    def __init__(self, folder: Path, access: Access) -> None:
        self.folder, self._access = folder, access

    def git(self, *words: str) -> str:
        """Run Git in the clone and return its standard output."""
        return git.run(self._access, *words, folder=self.folder)

    @property
    def head(self) -> str:
        """The commit that is checked out; empty if the repository has no commit yet."""
        return self._read("rev-parse", "--verify", "--quiet", "HEAD")

    @property
    def branch(self) -> str:
        """The branch to publish to: the repository's default branch."""
        return self._read("symbolic-ref", "--short", "HEAD") or git.BRANCH

    def last_change(self, *paths: str) -> str:
        """The last commit that changed one of the paths; empty if there is no such commit."""
        return self._read("log", "-1", "--format=%H", "--", *paths) if self.head else ""

    def trailer(self, commit: str, name: str) -> str:
        """Return the value of a trailer in a commit's message; empty if the trailer is missing."""
        return self._read("log", "-1", f"--format=%(trailers:key={name},valueonly)", commit)

    def tag_of(self, commit: str) -> str:
        """The first tag of a commit; empty if the commit has no tag."""
        return next(iter(self._read("tag", "--points-at", commit).split()), "")

    def checkout(self, revision: str) -> None:
        """Check out a branch, tag or commit; if the revision is empty, keep the current commit.

        Raises:
            InputError: there is no such revision.
        """
        if revision.startswith("-"):
            raise InputError(f"{revision}: not a revision; give a branch, tag or commit")
        if revision:
            # Without "--", Git could take the revision for a path.
            self.git("checkout", "--quiet", revision, "--")

    def commit(self, path: str, message: str) -> bool:
        """Commit a folder's contents; return False if nothing has changed since the last commit."""
        self.git("add", "--all", "--", path)
        if not self.git("status", "--porcelain", "--", path):
            return False
        self.git("commit", "--quiet", "--message", message)
        return True

    def rehearse(self) -> None:
        """Check with a dry run that the repository accepts a push, before data are uploaded.

        Raises:
            InputError: the repository refuses a push.
            TemporaryError: the repository cannot be reached.
        """
        local = self._access.local_git
        objects = local and local / "objects"
        if objects and objects.is_dir() and not os.access(objects, os.W_OK):
            raise InputError(f"{local}: the repository's files are not writable; {git.REMEDY}")
        with contextlib.suppress(git.OvertakenError):
            self.git("push", "--quiet", "--dry-run", "origin", f"HEAD:refs/heads/{self.branch}")

    def push(self, tag: str) -> str:
        """Push the commits and a tag atomically, on top of the commits that others pushed.

        Args:
            tag: the tag's name without its number; this method appends the next free number.

        Returns:
            The tag with its number; empty if another process has already pushed the same contents.

        Raises:
            TemporaryError: the repository cannot be reached, another process pushed first in every
                attempt, or another push changed the same files.
            InputError: the repository refuses the push.
        """
        for attempt in range(ATTEMPTS):
            try:
                return self._push(tag)
            except git.OvertakenError:
                if attempt:
                    time.sleep(random.uniform(0.1, 0.5) * attempt)  # noqa: S311
        raise TemporaryError(
            f"{self._access.git}: other pushes came first {ATTEMPTS} times; try again later"
        )

    def _push(self, tag: str) -> str:
        self.git("fetch", "--quiet", "--tags", "origin")
        branch, onto = self.branch, f"origin/{self.branch}"
        if pushed := self._read("rev-parse", "--verify", "--quiet", onto):
            self._rebase(onto)
            if self.head == pushed:
                return ""
        named = self._next(tag)
        self.git("tag", "--annotate", "--message", self._read("log", "-1", "--format=%s"), named)
        try:
            said = self.git(
                *("push", "--porcelain", "--atomic", "origin"),
                *(f"HEAD:refs/heads/{branch}", f"refs/tags/{named}"),
            )
        except MusicGenreError:
            self.git("tag", "--delete", named)
            raise
        # If another process made the same commit and tag in the same second, its commit and tag are
        # identical to ours. Then our push changes nothing, and the tag is not new.
        is_new = any(row.startswith(("*", " ")) for row in said.splitlines() if "\t" in row)
        return named if is_new else ""

    def _next(self, tag: str) -> str:
        names = self.git("tag", "--list", f"{tag}.v*").split()
        numbers = [name.removeprefix(f"{tag}.v") for name in names]
        return f"{tag}.v{max([0, *(int(each) for each in numbers if each.isdecimal())]) + 1}"

    def _rebase(self, onto: str) -> None:
        try:
            self.git("rebase", "--quiet", onto)
        except InputError as error:
            raise TemporaryError(
                f"{self._access.git}: another push changed the same files ({error}); try again"
            ) from None

    def _read(self, *words: str) -> str:
        """Run Git and return its output; return an empty string if Git refuses the command."""
        try:
            return self.git(*words).strip()
        except InputError:
            return ""


@contextmanager
def cloned(access: Access, store: Path, revision: str = "") -> Iterator[Clone]:
    """Clone the repository into a folder that is removed when the `with` block ends.

    Args:
        access: the repository and its credentials.
        store: the artifact folder.
        revision: branch, tag or commit; by default the newest commit of the default branch.

    Raises:
        InputError: there is no such repository or revision, or access is refused.
        TemporaryError: the repository cannot be reached.
    """
    if access.local_git:
        make_repository(access.local_git)
    folder, held = _take(store / "versions" / "clones")
    try:
        git.run(access, "clone", "--quiet", access.git, str(folder))
        clone = Clone(folder, access)
        clone.checkout(revision)
        yield clone
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def make_repository(folder: Path) -> None:
    """Make a bare repository atomically, if the folder is missing or empty."""
    if folder.exists() and any(folder.iterdir()):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{files.TEMPORARY}{uuid.uuid4().hex}")
    try:
        git.run(None, "init", "--quiet", "--bare", f"--initial-branch={git.BRANCH}", str(temporary))
        temporary.rename(folder)
    except OSError:
        if not any(folder.iterdir()):  # empty: no other process made the repository
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take(work: Path) -> tuple[Path, int]:
    """Make a folder for a clone and lock it.

    Returns:
        The folder and the lock's descriptor. The lock ends when the descriptor is closed, at the
        latest when this process ends.
    """
    work.mkdir(parents=True, exist_ok=True)
    # Lock the parent folder first. Otherwise another process could remove the new folder before
    # this process has locked the new folder.
    entry = _hold(work, fcntl.LOCK_EX)
    try:
        _sweep(work)
        folder = work / f"{OWN}{uuid.uuid4().hex}"
        folder.mkdir()
        return folder, _hold(folder)
    finally:
        os.close(entry)


def _hold(folder: Path, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> int:
    """Lock a folder; closing the returned descriptor releases the lock.

    Raises:
        OSError: the folder is missing, or another process has locked it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sweep(work: Path) -> None:
    """Remove the clones that killed processes left behind.

    A clone of another host is removed only if it is old: on storage that hosts share, this host
    might not see the other host's lock.
    """
    for folder in work.iterdir():
        try:
            is_old = time.time() - folder.stat().st_mtime > OLD_SECONDS
            held = _hold(folder)
        except OSError:
            continue
        if is_old or folder.name.startswith(OWN):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(held)
