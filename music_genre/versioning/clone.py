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
"""How many times a push is tried when others push at the same time."""
OWN: Final = f"{files.TEMPORARY}{os.uname().nodename}-"
"""Prefix of the names of this host's clones."""
OLD_SECONDS: Final = 86_400.0
"""A clone older than this is abandoned; no task with a clone takes this long."""


class Clone:
    """A folder of files at one commit."""

    def __init__(self, folder: Path, access: Access) -> None:
        self.folder, self._access = folder, access

    def git(self, *words: str) -> str:
        """Run Git in the clone; returns what it printed."""
        return git.run(self._access, *words, folder=self.folder)

    @property
    def head(self) -> str:
        """The commit that is checked out; empty if there is none yet."""
        return self._read("rev-parse", "--verify", "--quiet", "HEAD")

    @property
    def branch(self) -> str:
        """The branch to publish to: the repository's own default."""
        return self._read("symbolic-ref", "--short", "HEAD") or git.BRANCH

    def last_change(self, *paths: str) -> str:
        """The last commit that changed one of the paths; empty if none did."""
        return self._read("log", "-1", "--format=%H", "--", *paths) if self.head else ""

    def trailer(self, commit: str, name: str) -> str:
        """Read a trailer of a commit's message; empty if it has none."""
        return self._read("log", "-1", f"--format=%(trailers:key={name},valueonly)", commit)

    def tag_of(self, commit: str) -> str:
        """The first tag of a commit; empty if it has none."""
        return next(iter(self._read("tag", "--points-at", commit).split()), "")

    def checkout(self, revision: str) -> None:
        """Check out a branch, tag or commit; an empty revision means the newest commit.

        Raises:
            InputError: there is no such revision.
        """
        if revision.startswith("-"):
            raise InputError(f"{revision}: not a revision; give a branch, tag or commit")
        if revision:
            self.git("checkout", "--quiet", revision, "--")  # without --, Git may see a path

    def commit(self, path: str, message: str) -> bool:
        """Commit a folder's contents; False if nothing has changed since the last commit."""
        self.git("add", "--all", "--", path)
        if not self.git("status", "--porcelain", "--", path):
            return False
        self.git("commit", "--quiet", "--message", message)
        return True

    def rehearse(self) -> None:
        """Check that the repository accepts a push, before there is work to lose.

        Raises:
            InputError: the repository refuses.
            TemporaryError: the repository cannot be reached.
        """
        local = self._access.local_git
        objects = local and local / "objects"
        if objects and objects.is_dir() and not os.access(objects, os.W_OK):
            raise InputError(f"{local}: the repository's files are not writable; {git.REMEDY}")
        with contextlib.suppress(git.OvertakenError):
            self.git("push", "--quiet", "--dry-run", "origin", f"HEAD:refs/heads/{self.branch}")

    def push(self, tag: str) -> str:
        """Push the commits and a tag atomically, on top of whatever others pushed.

        Args:
            tag: the tag's name; a number is appended.

        Returns:
            The tag with its number; empty if others have pushed the same contents meanwhile.

        Raises:
            TemporaryError: the repository cannot be reached, or others pushed first every time.
            InputError: the repository refuses.
        """
        for attempt in range(ATTEMPTS):
            try:
                return self._push(tag)
            except git.OvertakenError:
                if attempt:
                    time.sleep(random.uniform(0.1, 0.5) * attempt)  # noqa: S311
        raise TemporaryError(
            f"{self._access.git}: others pushed first {ATTEMPTS} times; try again later"
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
        # If another process made the same commit and tag in the same second, they are identical to
        # ours, and this push changes nothing.
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
        """Run Git; returns what it printed, empty if Git refuses or finds nothing."""
        try:
            return self.git(*words).strip()
        except InputError:
            return ""


@contextmanager
def cloned(access: Access, store: Path, revision: str = "") -> Iterator[Clone]:
    """Clone the repository into a folder that is removed at the end.

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
        if not any(folder.iterdir()):  # else another process made it first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take(work: Path) -> tuple[Path, int]:
    """Make a folder and lock it as in use; the lock ends with this process at the latest."""
    work.mkdir(parents=True, exist_ok=True)
    entry = _hold(work, fcntl.LOCK_EX)  # so that nobody sees a folder that is not locked yet
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
        OSError: it is in use, or gone.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sweep(work: Path) -> None:
    """Remove the clones of processes that were killed; another host's clones only if they are old.

    On storage that hosts share, one host may not see the locks of another.
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
