"""Snapshots of a folder of DAG files: complete copies, one of which is current.

Each copy has a path of its own and never changes. So a reader that stays in one copy never sees a
file change, and never sees an incomplete copy.
"""

import contextlib
import itertools
import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

IGNORE_FILE = ".airflowignore"
"""The only hidden file that a snapshot includes."""
CURRENT = "current"
MAX_BYTES = 64 * 1024**2
"""Size limit of a whole DAG folder: each snapshot is a copy, and the dag-processor holds
several copies in memory."""


AHEAD_SECONDS = 5.0
"""How far in the future the modification time of a changed file is. Airflow parses a file again if
the file changed after the end of its last parse. A parse of the old version can still be running
when the new version is written; without this lead the new version would wait for the next full
parse."""


class File(NamedTuple):
    """A file's content and permissions."""

    content: bytes
    mode: int = 0o644


Tree = dict[str, File]
"""A folder's files: path relative to the folder → file."""


def files_of(folder: Path) -> Iterator[Path]:
    """Yield a folder's files and follow links; skip bytecode and hidden files except `IGNORE_FILE`.

    Raises:
        OSError: the folder or a subfolder cannot be listed.
    """
    seen = set()  # real paths, because a link can lead back to a parent folder
    for top, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "." and name != "__pycache__"]
        if (real := os.path.realpath(top)) in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            if name[0] != "." or name == IGNORE_FILE:
                yield Path(top, name)


def _raise(error: OSError) -> None:
    raise error


def state_of(folder: Path) -> frozenset[tuple[str, int, int, int]]:
    """Return path, inode, size and modification time of each file, to notice changes.

    Raises:
        OSError: the folder or a subfolder cannot be listed.
    """
    found = set()
    for path in files_of(folder):
        with contextlib.suppress(OSError):  # deleted meanwhile
            its = path.stat()
            found.add((str(path), its.st_ino, its.st_size, its.st_mtime_ns))
    return frozenset(found)


def read_tree(folder: Path) -> tuple[Tree, dict[str, str]]:
    """Read a folder's files.

    Returns:
        Two dicts: the files that can be read; and file that cannot be read → the reason.

    Raises:
        OSError: the folder or a subfolder cannot be listed, or the files exceed `MAX_BYTES`.
    """
    tree: Tree = {}
    faults, n_bytes = {}, 0
    for path in files_of(folder):
        name = str(path.relative_to(folder))
        try:
            its = path.stat()
            n_bytes += its.st_size
            if n_bytes > MAX_BYTES:
                raise _too_large(folder)
            if stat.S_ISREG(its.st_mode):  # opening a named pipe could block for ever
                tree[name] = File(path.read_bytes(), 0o755 if its.st_mode & 0o100 else 0o644)
        except FileNotFoundError:  # deleted meanwhile
            continue
        except OSError as error:
            if n_bytes > MAX_BYTES:
                raise
            faults[name] = f"cannot be read: {error.strerror}"
    return tree, faults


def read_tar(path: Path) -> tuple[Tree, dict[str, str]]:
    """Read the files of a tar file, as `read_tree` reads a folder.

    Returns:
        The files; and link that leads to no file of the tar file → the reason.

    Raises:
        OSError: it is no tar file, or the files exceed `MAX_BYTES`.
    """
    tree: Tree = {}
    links: dict[str, str] = {}
    n_bytes = 0
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if _is_hidden(member.name):
                    continue
                n_bytes += member.size
                if n_bytes > MAX_BYTES:
                    raise _too_large("the repository")
                if member.issym():
                    target = posixpath.join(posixpath.dirname(member.name), member.linkname)
                    links[member.name] = posixpath.normpath(target)
                elif (content := tar.extractfile(member)) is not None:
                    mode = 0o755 if member.mode & 0o100 else 0o644
                    tree[member.name] = File(content.read(), mode)
    except tarfile.TarError as error:
        raise OSError(f"{path} cannot be read: {error}") from error
    found = {link: tree[target] for link, target in links.items() if target in tree}
    broken = "a link to a folder, or to a file outside the repository's folder; use a copy"
    return tree | found, {link: broken for link in links if link not in found}


def _is_hidden(name: str) -> bool:
    *folders, file = name.split("/")
    hidden = any(part[0] == "." or part == "__pycache__" for part in folders)
    return hidden or (file[:1] == "." and file != IGNORE_FILE)


class Folder:
    """A folder of DAG files that people edit.

    Args:
        path: the folder's path; if it is empty, there are no files.
    """

    label = ""
    """The text at the end of a snapshot's name; snapshots of a folder have none."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None

    def state(self) -> object:
        """Return a value that changes when a file changes; raises the errors of `state_of`."""
        return state_of(self._path) if self._path else "no folder"

    def tree(self) -> tuple[Tree, dict[str, str]]:
        """Read the folder; returns the same as `read_tree`."""
        return read_tree(self._path) if self._path else ({}, {})


def _too_large(folder: Path | str) -> OSError:
    return OSError(
        f"{folder} holds more than {MAX_BYTES // 1024**2} MiB; move what is no DAG file elsewhere"
    )


@contextlib.contextmanager
def written(tree: Mapping[str, File], beside: Path, like: Path | None = None) -> Iterator[Path]:
    """Write files into a new folder; on exit, delete the folder unless it was moved.

    Args:
        tree: the files.
        beside: the folder in which the new folder is made.
        like: an earlier folder, such as the current snapshot. A file that is the same in `tree`
            and in the earlier folder is hard-linked, so it keeps its modification time. Airflow
            uses this time to decide which file to parse first.
    """
    beside.mkdir(parents=True, exist_ok=True)
    before = read_tree(like)[0] if like else {}
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=beside))
    folder.chmod(0o755)
    try:
        for name, file in tree.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if like and before.get(name) == file:
                path.hardlink_to(like / name)
            else:
                path.write_bytes(file.content)
                path.chmod(file.mode)
                later = time.time() + AHEAD_SECONDS
                os.utime(path, (later, later))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Snapshots:
    """The snapshots in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def current(self) -> Path | None:
        """The current snapshot's folder; None before the first snapshot."""
        link = self._folder / CURRENT
        return link.resolve() if link.exists() else None

    def tree(self) -> Tree:
        """The files of the current snapshot; empty before the first snapshot."""
        return read_tree(self.current)[0] if self.current else {}

    def named(self, name: str) -> Path | None:
        """The folder of the snapshot with this name; None if it does not exist."""
        path = self._folder / Path(name).name
        return path if path.is_dir() else None

    def publish(self, tree: Mapping[str, File], label: str = "") -> Path:
        """Write a new snapshot and make it current atomically; returns the snapshot's folder.

        Args:
            tree: the snapshot's files.
            label: the end of the snapshot's name. The name begins with the time.
        """
        name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f") + (f"-{label}" if label else "")
        with written(tree, self._folder, self.current) as folder:
            folder.rename(self._folder / name)
        link = self._folder / f".{name}"
        link.symlink_to(name)
        link.replace(self._folder / CURRENT)
        return self._folder / name

    def prune(self, seconds: float, but: Iterable[str] = ()) -> None:
        """Delete snapshots that a newer snapshot replaced more than `seconds` ago.

        Unfinished snapshots of killed processes are deleted `seconds` after they were begun.

        Args:
            seconds: how long a replaced or unfinished snapshot is kept.
            but: names of snapshots to keep.
        """
        kept = sorted(path for path in self._folder.glob("[0-9]*") if path.is_dir())
        old = [path for path, newer in itertools.pairwise(kept) if _age(newer) > seconds]
        old += [path for path in self._folder.glob(".new-*") if _age(path) > seconds]
        for path in old:
            if path != self.current and path.name not in but:
                shutil.rmtree(path, ignore_errors=True)


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime
