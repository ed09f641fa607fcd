"""Fetch a revision of a data set, and publish a data set."""

import errno
import logging
import os
import re
from pathlib import Path
from typing import Any, Final

from music_genre.errors import InputError
from music_genre.store import addresses, files, keys
from music_genre.versioning import storage
from music_genre.versioning.access import Access
from music_genre.versioning.clone import Clone, cloned

logger = logging.getLogger(__name__)

PREFIX: Final = "dvc:"
"""Start of the address of a versioned data set; the path in the repository follows."""
_PART = r"[A-Za-z0-9_-]+(?:\.(?!lock\b)[A-Za-z0-9_-]+)*"
NAME: Final = re.compile(f"{_PART}(?:/{_PART})*")
"""Valid names of data sets: Git accepts them in a tag (see `man git-check-ref-format`)."""
TRACKS: Final = "tracks.csv"


def check(address: str, store: Path, access: Access | None, revision: str = "") -> None:
    """Check that a data set exists, without fetching it.

    The arguments and errors are the same as those of `pull`.
    """
    if not address.startswith(PREFIX):
        _folder(address, revision)
        return
    access = _opened_by(access, address)
    with cloned(access, store, revision) as clone:
        _tracked(clone, access, address, revision)


def pull(address: str, store: Path, access: Access | None, revision: str = "") -> dict[str, Any]:
    """Fetch a data set, unless it is already in the artifact folder.

    Args:
        address: a folder, which is used in place, or dvc:PATH for data under version control.
        store: the artifact folder; each data set gets a folder in it, named by its content key.
        access: repository and remote; needed for dvc:PATH.
        revision: branch, tag or commit; by default the newest commit.

    Returns:
        The result: the address of the audio, and the version. For a folder, the version is empty.

    Raises:
        InputError: the folder, data set or revision does not exist, or the repository or the
            remote refuses access.
        TemporaryError: the repository or the remote cannot be reached.
    """
    if not address.startswith(PREFIX):
        return {"audio": str(_folder(address, revision)), "version": "", "reused": True}
    access = _opened_by(access, address)
    with cloned(access, store, revision) as clone, storage.opened(clone, store, access) as repo:
        name, tracked = _tracked(clone, access, address, revision)
        table = tracked.parent / TRACKS
        origins = keys.file_checksum(table) if table.is_file() else ""
        key = keys.content_key(storage.checksum(repo, str(tracked)), origins)
        folder = store / "data" / key
        reused = folder.is_dir()
        if not reused:
            storage.probe(repo, write=False)
            storage.pull(repo, str(tracked))
            _settle([clone.folder / name, table], folder)
        version = f"{address}@{clone.last_change(*_texts(name))}"
    return {"audio": str(folder / Path(name).name), "version": version, "reused": reused}


def _folder(address: str, revision: str) -> Path:
    folder = addresses.local_path(address)
    if revision:
        raise InputError(
            f"{address}: a folder has no revision {revision}; give dvc:PATH or omit --revision"
        )
    if not addresses.is_folder(folder):
        raise InputError(
            f"{folder}: no such folder; give an existing folder, or dvc:PATH for data in a "
            "repository"
        )
    return folder


def _opened_by(access: Access | None, address: str) -> Access:
    if access is None:
        raise InputError(f"{address}: needs a repository and its remote; give --git and --remote")
    return access


def _tracked(clone: Clone, access: Access, address: str, revision: str) -> tuple[str, Path]:
    """Find a data set in a clone; return its name and the .dvc file that tracks it."""
    name = _check(address.removeprefix(PREFIX))
    tracked = clone.folder / f"{name}.dvc"
    if not tracked.is_file():
        known = ", ".join(_data_sets(clone)) or "none"
        at = f" at revision {revision}" if revision else ""
        raise InputError(f"{access.git}: has no data set {name}{at}; available: {known}")
    return name, tracked


def _check(name: str) -> str:
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r}: not a valid data set name; use letters, digits, - _ . and /")
    return name


def _data_sets(clone: Clone) -> list[str]:
    found = (file.relative_to(clone.folder) for file in clone.folder.rglob("*.dvc"))
    return sorted(
        str(file.with_suffix("")) for file in found if file.parts[0] not in {".dvc", "models"}
    )


def _settle(pulled: list[Path], folder: Path) -> None:
    """Move a complete data set to `folder`, unless another process has already put it there."""
    whole = pulled[0].parent / f"{files.TEMPORARY}whole"
    whole.mkdir()
    for path in pulled:
        if path.exists():
            path.rename(whole / path.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        whole.rename(folder)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise


def publish_data(folder: Path, name: str, store: Path, access: Access) -> dict[str, Any]:
    """Put a folder of audio under version control; files published before are not uploaded again.

    Args:
        folder: the folder that holds the genre folders; a tracks.csv beside this folder is stored
            in Git.
        name: name of the data set, and of its folder in the repository.
        store: the artifact folder.
        access: repository and remote.

    Returns:
        The result: address for `pull`, commit, tag; `reused` is true if nothing has changed.

    Raises:
        InputError: the folder or one of its files cannot be published, or the repository or the
            remote refuses access.
        TemporaryError: the repository or the remote cannot be reached.
    """
    if not addresses.is_folder(folder) or not any(folder.iterdir()):
        raise InputError(
            f"{folder}: missing or empty; give the folder that contains the genre folders"
        )
    path = _check(f"{name}/{folder.name}")
    with cloned(access, store) as clone, storage.opened(clone, store, access) as repo:
        storage.probe(repo, write=True)
        clone.rehearse()
        n_files = _place_all(folder, clone.folder / path)
        tracked = storage.add(repo, [clone.folder / path])
        storage.push(repo, tracked)
        storage.verify(repo, tracked)
        is_new = clone.commit(name, f"Data {path}: {n_files} files")
        tag = clone.push(f"data/{name}") if is_new else ""
        commit, remote = clone.last_change(*_texts(path)), storage.address(repo)
    address = f"{PREFIX}{path}"
    return {
        "data": address,
        "version": f"{address}@{commit}",
        "commit": commit,
        "tag": tag,
        "repository": access.git,
        "remote": remote,
        "n_files": n_files,
        "reused": not tag,
    }


def _texts(name: str) -> tuple[str, str]:
    """Return the paths of a data set's files in Git: its .dvc file and its tracks.csv."""
    return f"{name}.dvc", str(Path(name).parent / TRACKS)


def _place_all(folder: Path, into: Path) -> int:
    """Put the audio files into a clone, and their tracks.csv beside them.

    Returns:
        The number of audio files.

    Raises:
        InputError: a file's name is not UTF-8, or a link points outside the folder or to a folder.
    """
    n_files = 0
    for parent, folders, names in os.walk(folder):
        for file in (Path(parent, name) for name in [*folders, *names]):
            _check_file(file, folder)
            if file.is_file():
                storage.place(file.resolve(), into / file.relative_to(folder))
                n_files += 1
    table = into.parent / TRACKS
    table.unlink(missing_ok=True)
    if (beside := folder.parent / TRACKS).is_file():
        table.write_bytes(beside.read_bytes())
    return n_files


def _check_file(file: Path, folder: Path) -> None:
    if not str(file).isprintable() and os.fsencode(file).decode("utf-8", "replace") != str(file):
        raise InputError(f"{str(file)!r}: DVC accepts only UTF-8 names; rename the file")
    leads_out = not file.resolve().is_relative_to(folder.resolve())
    if file.is_symlink() and (leads_out or file.is_dir()):
        what = "is a link that points outside the folder" if leads_out else "is a link to a folder"
        raise InputError(
            f"{file}: {what}, which publish does not follow; replace the link with its target"
        )
