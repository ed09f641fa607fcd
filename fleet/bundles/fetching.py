"""Fetch DAG files from a Git repository; a program that the dag-processor runs beside its loop.

    python -m fleet.bundles.fetching JSON

The JSON object is a `Task`. The program prints the id of the newest commit. If that commit is not
the known one, it also writes the commit's files to a tar file. Each fetch uses a new, temporary
repository: what a killed fetch leaves behind can disturb no later one.

Exit status: 0; 75 if the host does not answer; 1 for any other fault, with the reason on standard
error.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from fleet import git
from fleet.bundles.snapshots import MAX_BYTES
from fleet.kernel import PR_SET_PDEATHSIG, prctl

AWAY = 75
LEFT_OVER = ".fetch-*"
"""Folders that killed fetches leave behind, beside the tar file."""


class FetchError(Exception):
    """A fetch failed.

    Attributes:
        status: the exit status of the program.
    """

    def __init__(self, reason: str, status: int = 1) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Place:
    """Where the files are."""

    address: str
    """URL of the repository."""
    ref: str = "main"
    """Branch, tag or commit."""
    folder: str = ""
    """Folder inside the repository; empty for the whole repository."""

    @property
    def is_commit(self) -> bool:
        """Whether `ref` is a whole commit id, so that its files never change."""
        return bool(re.fullmatch(r"[0-9a-f]{40}", self.ref))


@dataclass(frozen=True)
class Task:
    """What one call of the program has to do."""

    place: Place
    access: git.Access
    known: str
    """The commit whose files are already there; empty for none."""
    tar: str
    """The file to write."""

    def to_json(self) -> str:
        """Return the argument of the program."""
        return json.dumps({**asdict(self), "access": list(self.access)})

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """Read the argument of the program."""
        told = json.loads(text)
        access = git.Access(*told.pop("access"))
        return cls(place=Place(**told.pop("place")), access=access, **told)


def fetch(task: Task) -> str:
    """Return the id of the newest commit; write its files if it is not the known commit."""
    place = task.place
    name, commit = (place.ref, place.ref) if place.is_commit else newest(place, task.access)
    if commit == task.known:
        return commit
    tar = Path(task.tar)
    with tempfile.TemporaryDirectory(prefix=LEFT_OVER[:-1], dir=tar.parent) as folder:
        run = ["--git-dir", folder]
        ask(git.Access(), *run, "init", "--quiet", "--bare")
        words = ["fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--"]
        ask(task.access, *run, *words, place.address, name)
        commit = ask(git.Access(), *run, "rev-parse", "FETCH_HEAD^{commit}").strip()
        files = f"{commit}:{place.folder}" if place.folder else commit
        if ask(git.Access(), *run, "cat-file", "-t", files, fault="") not in ("tree\n", "commit\n"):
            raise FetchError(f"commit {commit[:12]} has no folder {place.folder}")
        new = Path(folder, "tree.tar")
        ask(git.Access(), *run, "archive", "--format=tar", f"--output={new}", files)
        if new.stat().st_size > 2 * MAX_BYTES:
            limit = f"{MAX_BYTES // 1024**2} MiB"
            raise FetchError(f"its files exceed {limit}; keep only DAG files in the folder")
        new.replace(tar)
    return commit


def newest(place: Place, access: git.Access) -> tuple[str, str]:
    """Return the full name of the branch or tag, and the commit to which it points."""
    listed = ask(access, "ls-remote", "--", place.address, place.ref, f"{place.ref}^{{}}")
    found = {name: commit for commit, name in map(str.split, listed.splitlines())}
    for name in (f"refs/tags/{place.ref}", f"refs/heads/{place.ref}", place.ref):
        if name in found:
            return name, found.get(f"{name}^{{}}", found[name])
    raise FetchError(f"it has no branch or tag {place.ref}")


def ask(access: git.Access, *words: str, fault: str | None = None) -> str:
    """Run Git and return its output.

    Args:
        access: how to log in.
        words: the command.
        fault: the result if Git fails; None: raise the error.

    Raises:
        FetchError: Git fails; the error has Git's reason.
    """
    ended = subprocess.run(
        git.command(access, *words),
        env=git.environment(access),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if ended.returncode == 0:
        return ended.stdout
    if fault is not None:
        return fault
    raise FetchError(git.reason(ended.stderr), AWAY if git.is_away(ended.stderr) else 1)


def main() -> None:
    """Run the program; it ends, and ends Git, on SIGTERM and when the dag-processor dies."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(AWAY))
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        print(fetch(Task.from_json(sys.argv[1])))
    except FetchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)


if __name__ == "__main__":
    main()
