"""Snapshots of a folder of DAG files: complete copies, one of which is current.

Each copy has a path of its own and never changes. So a reader that keeps its copy sees neither a
changing file nor an incomplete copy.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

Tree = dict[str, bytes]
"""A folder's files: path relative to the folder → content."""
IGNORE_FILE = ".airflowignore"
"""The one hidden file that belongs to a DAG folder."""
CURRENT = "current"


def files_of(folder: Path) -> Iterator[Path]:
    """Yield a folder's files, links followed, without bytecode and hidden files.

    Raises:
        OSError: the folder, or one in it, cannot be listed.
    """
    for top, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "." and name != "__pycache__"]
        for name in names:
            if name[0] != "." or name == IGNORE_FILE:
                yield Path(top, name)


def _raise(error: OSError) -> None:
    raise error


def state_of(folder: Path) -> frozenset[tuple[str, int, int, int]]:
    """Path, inode, size and time of each file: they differ if a file has changed.

    Raises:
        OSError: the folder, or one in it, cannot be listed.
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
        The files, and those that cannot be read with the reason.

    Raises:
        OSError: the folder, or one in it, cannot be listed.
    """
    tree, faults = {}, {}
    for path in files_of(folder):
        name = str(path.relative_to(folder))
        try:
            tree[name] = path.read_bytes()
        except FileNotFoundError:  # deleted meanwhile
            continue
        except OSError as error:
            faults[name] = f"cannot be read: {error.strerror}"
    return tree, faults


def write_tree(tree: Mapping[str, bytes], folder: Path) -> None:
    """Write files into a folder, readable for all users."""
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@contextlib.contextmanager
def written(tree: Mapping[str, bytes], beside: Path) -> Iterator[Path]:
    """Write files into a new folder, and delete the folder at the end unless it was moved."""
    beside.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=beside))
    folder.chmod(0o755)
    try:
        write_tree(tree, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Snapshots:
    """The snapshots in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def current(self) -> Path | None:
        """The current snapshot's folder; None before the first one."""
        link = self._folder / CURRENT
        return link.resolve() if link.exists() else None

    def tree(self) -> Tree:
        """The files of the current snapshot; empty before the first one."""
        return read_tree(self.current)[0] if self.current else {}

    def publish(self, tree: Mapping[str, bytes]) -> Path:
        """Write files as a new snapshot and make it current in one step; returns its folder."""
        name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
        with written(tree, self._folder) as folder:
            folder.rename(self._folder / name)
        link = self._folder / f".{name}"
        link.symlink_to(name)
        link.replace(self._folder / CURRENT)
        return self._folder / name

    def prune(self, seconds: float) -> None:
        """Delete snapshots that were replaced by a newer one more than this many seconds ago."""
        kept = sorted(path for path in self._folder.glob("[0-9]*") if path.is_dir())
        for path, newer in itertools.pairwise(kept):
            if path != self.current and time.time() - newer.stat().st_mtime > seconds:
                shutil.rmtree(path, ignore_errors=True)
