"""Store and fetch the bytes of versions with DVC, in a clone; all clones share one cache."""

import hashlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

# DVC reads this variable when it is imported, so the variable must be set before the import.
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
from dvc.config import ConfigError
from dvc.exceptions import DvcException
from dvc.fs import known_implementations
from dvc.repo import Repo

from music_genre.errors import InputError, MusicGenreError, TemporaryError
from music_genre.store import files
from music_genre.versioning import s3
from music_genre.versioning.access import S3, Access
from music_genre.versioning.clone import Clone

logger = logging.getLogger(__name__)

REMOTE: Final = "storage"
"""The remote's name in the .dvc/config of a new repository."""
S3_FILESYSTEM: Final = "music_genre.versioning.s3_filesystem.S3FileSystem"
"""The class that DVC loads for a remote on S3."""
N_REQUESTS: Final = 16
"""How many objects are checked in parallel."""
LOGGERS: Final = ("dvc", "dvc_objects", "dvc_data", "dvc_s3", "s3fs")


def address(repo: Repo) -> str:
    """Return the address of the repository's remote.

    Raises:
        InputError: the repository has no default remote.
    """
    name = repo.config["core"].get("remote", "").lower()
    found = repo.config["remote"].get(name, {}).get("url")
    if not found:
        raise InputError(
            f"{repo.root_dir}: .dvc/config has no default remote; in a clone, run "
            "dvc remote add --default NAME ADDRESS, then commit and push"
        )
    return str(found).rstrip("/")


def probe(repo: Repo, *, write: bool) -> None:
    """Check that the remote is usable, before a transfer starts.

    A remote on S3 is tested with requests. A remote that is a folder is tested only before a push:
    the folder is made if it is missing, and a test file is written.

    Raises:
        InputError: S3 refuses a request; the message says why.
        TemporaryError: S3 does not answer.
        OSError: the folder cannot be written.
    """
    remote = address(repo)
    if remote.startswith(S3):
        s3.probe(remote, write=write)
    elif write:
        folder = Path(remote)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / s3.PROBE, "")


class _Faults(logging.Handler):
    """Keeps the first error that DVC logs without raising it: the reason why a transfer failed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and self.first is None:
            self.first = record.exc_info[1]


@contextmanager
def _in_words(what: str) -> Iterator[None]:
    """Turn errors that DVC raises or logs into errors of this package; suppress DVC's output."""
    handler = _Faults()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(each.handlers, each.propagate) for each in loggers]
    for each in loggers:
        each.handlers, each.propagate = [handler], False
    try:
        yield
    except MusicGenreError:
        raise
    except (DvcException, ConfigError, OSError, sqlite3.Error, *s3.ERRORS) as error:
        raise _fault(what, handler.first or error) from None
    finally:
        for each, (handlers, propagate) in zip(loggers, before, strict=True):
            each.handlers, each.propagate = handlers, propagate


def _fault(what: str, error: BaseException) -> MusicGenreError | OSError:
    """Turn an error into an error of this package; only add a file name to a disk error."""
    if isinstance(error, OSError) and not s3.is_its(error):
        error.filename = error.filename or what
        return error
    if isinstance(error, sqlite3.Error):  # DVC records files in an SQLite database
        return TemporaryError(f"{what}: {error}; perhaps there is no space left on device")
    return s3.in_words(what, error)


@contextmanager
def opened(clone: Clone, store: Path, access: Access) -> Iterator[Repo]:
    """Open DVC in a clone; initialise DVC first if the repository does not use DVC yet.

    Raises:
        InputError: DVC cannot open the repository, or the repository has no remote.
    """
    s3.be_compatible()
    known_implementations["s3"]["class"] = S3_FILESYSTEM
    with _in_words(f"{access.git}: DVC"):
        if not (clone.folder / ".dvc" / "config").exists():
            _begin(clone, access)
        cache = store / "versions" / "cache"
        own: dict[str, Any] = {
            "core": {"site_cache_dir": str(clone.folder / ".dvc" / "tmp" / "site")},
            "cache": {"dir": str(cache), "type": "reflink,hardlink,copy"},
        }
        repo = Repo(str(clone.folder), config=own, _wait_for_lock=True)
    try:
        _settle_remote(repo, access)
        yield repo
    finally:
        repo.close()


def _begin(clone: Clone, access: Access) -> None:
    """Write and commit the files that `dvc init` would write.

    `dvc init` itself is not used, because it would need a cache outside the clone.
    """
    (clone.folder / ".dvc").mkdir(exist_ok=True)
    (clone.folder / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (clone.folder / ".dvc" / "config").write_text(
        f"[core]\n    remote = {REMOTE}\n    analytics = false\n"
        f"['remote \"{REMOTE}\"']\n    url = {access.remote}\n"
    )
    (clone.folder / ".dvcignore").touch()
    clone.commit(".", f"Store data with DVC at {access.remote}")


def _settle_remote(repo: Repo, access: Access) -> None:
    """Warn if the given remote is ignored because the repository has a different remote."""
    found = address(repo)
    if found != access.remote.rstrip("/"):
        logger.warning(
            "%s: stores its data at %s, so this remote is used instead of %s",
            *(access.git, found, access.remote),
        )


def place(file: Path, into: Path) -> None:
    """Put a file into a clone, as a hard link if possible, otherwise as a copy."""
    into.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, into)
    except OSError:  # the clone is on another file system, or hard links are not supported
        shutil.copyfile(file, into)


def add(repo: Repo, paths: Sequence[Path]) -> list[str]:
    """Make DVC track files or folders of the clone; return the paths of their .dvc files."""
    with _in_words(f"{repo.root_dir}: dvc add"):
        # With relink=True, DVC would replace the placed file with a link to the cached file.
        stages = repo.add([str(path) for path in paths], relink=False)
    return [str(stage.path) for stage in stages]


def push(repo: Repo, tracked: Sequence[str]) -> None:
    """Upload the data of .dvc files to the remote.

    Raises:
        InputError: the remote refuses the upload.
        TemporaryError: the remote does not answer.
    """
    with _in_words(f"{address(repo)}: dvc push"):
        repo.push(list(tracked))


def verify(repo: Repo, tracked: Sequence[str]) -> None:
    """Check that every object is complete on the remote; upload missing or incomplete ones again.

    Raises:
        TemporaryError: an object is still missing or incomplete.
    """
    with _in_words(f"{address(repo)}: verifying"):
        cache, remote = repo.cache.local, repo.cloud.get_remote_odb()
        oids = _oids(repo, tracked)
        for oid in _missing(cache, remote, oids):
            remote.fs.makedirs(remote.fs.parent(remote.oid_to_path(oid)))
            remote.fs.put_file(cache.oid_to_path(oid), remote.oid_to_path(oid))
        if missing := _missing(cache, remote, oids):
            raise TemporaryError(
                f"{address(repo)}: {len(missing)} of {len(oids)} objects are missing or incomplete "
                f"after the push (the first: {missing[0]}); nothing was committed; try again"
            )


def _oids(repo: Repo, tracked: Sequence[str]) -> list[str]:
    used: Iterable[Any] = repo.used_objs(targets=list(tracked)).values()
    return sorted({found.value for objects in used for found in objects})


def _missing(cache: Any, remote: Any, oids: Sequence[str]) -> list[str]:
    """List the objects that the remote lacks or holds with a wrong size.

    If the remote is a folder, objects with a wrong MD5 are listed too.
    """
    invalidate = getattr(remote.fs.fs, "invalidate_cache", lambda: None)
    invalidate()

    def is_there(oid: str) -> bool:
        path = remote.oid_to_path(oid)
        try:
            n_bytes = remote.fs.info(path)["size"]
        except FileNotFoundError:
            return False
        same = bool(n_bytes == Path(cache.oid_to_path(oid)).stat().st_size)
        return same and (remote.fs.protocol != "local" or _md5(path) == oid.partition(".")[0])

    with ThreadPoolExecutor(N_REQUESTS) as threads:
        return [
            oid for oid, found in zip(oids, threads.map(is_there, oids), strict=True) if not found
        ]


def _md5(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def checksum(repo: Repo, tracked: str) -> str:
    """Read the MD5 that a .dvc file records for its data.

    Raises:
        InputError: the .dvc file is damaged, or does not list exactly one output with a checksum.
    """
    with _in_words(f"{tracked}: reading"):
        outs = [out for stage in repo.stage.load_all(tracked) for out in stage.outs]
    if len(outs) != 1:
        raise InputError(f"{tracked}: lists {len(outs)} outputs instead of one; run dvc add again")
    if not outs[0].hash_info:
        raise InputError(f"{tracked}: its output has no checksum; run dvc add again")
    return str(outs[0].hash_info.value)


def pull(repo: Repo, tracked: str) -> None:
    """Fetch the data of a .dvc file into the clone.

    Raises:
        InputError: the remote lacks some of the data, or refuses the download.
        TemporaryError: the remote does not answer.
    """
    with _in_words(f"{address(repo)}: dvc pull"):
        repo.pull([tracked])
