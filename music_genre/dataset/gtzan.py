"""Fetch GTZAN, the data set that genre classifiers are compared on, and report its faults."""

import gzip
import hashlib
import logging
import lzma
import re
import shutil
import tarfile
import uuid
import zipfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, Final

from music_genre.dataset import assignment
from music_genre.dataset.download import BLOCK, download
from music_genre.errors import InputError
from music_genre.progress import Progress, silent
from music_genre.store import addresses, files

logger = logging.getLogger(__name__)

ADDRESS: Final = "https://huggingface.co/datasets/marsyas/gtzan/resolve/main/data/genres.tar.gz"
CHECKSUM: Final = "24347e0223d2ba798e0a558c4c172d9d4a19c00bb7963fe055d183dadb4ef2c6"
"""SHA-256 of the archive that the author published. Source: torchaudio.datasets.GTZAN."""
DAMAGED: Final = (
    *(tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
    *(EOFError, ValueError, RuntimeError),  # RuntimeError: the archive is encrypted
)
"""Exceptions that reading a damaged or incomplete archive raises."""
FOLDER: Final = "genres_original"
MEMBER: Final = re.compile(
    r"(?:^|/)(?:genres|genres_original)/([a-z]+)/(\1\.\d{5}\.(?:wav|au))\Z", re.ASCII
)
"""Matches the names of the archive members to extract. The two groups of the pattern, genre and
file name, form the path of the extracted file below the target folder. Neither group can contain a
slash, so no file is written outside this folder."""
N_TRACKS, N_GENRES = 1000, 10
UNREADABLE: Final = "jazz.00054.wav"
"""In many WAV archives of GTZAN, this file contains no audio."""
FILTERED: Final = "gtzan-fault-filtered"


def fetch(
    source: str, into: Path, *, checksum: str = "", progress: Progress = silent
) -> dict[str, Any]:
    """Fetch GTZAN and unpack it into one folder per genre.

    Args:
        source: URL or local path of the archive (.tar.gz, .tar, .zip).
        into: the folder in which `genres_original` is made; a downloaded archive stays there too.
        checksum: SHA-256 that the archive must have. If empty, an archive downloaded from
            `ADDRESS` must have `CHECKSUM`, and other archives are not checked.
        progress: called with (bytes so far, total bytes) of the download.

    Returns:
        The result: audio address, number of tracks, number of faulty tracks, number of tracks of
        each genre, and whether the folder was there already.

    Raises:
        InputError: the archive has the wrong checksum, is damaged, or does not hold GTZAN.
        TemporaryError: the download was cut off; call again to resume it.
        OSError: a file cannot be written, for example because the disk is full.
    """
    folder = into / FOLDER
    reused = folder.is_dir()
    if not reused:
        is_address = "://" in source
        archive = download(source, into, progress) if is_address else addresses.local_path(source)
        check(archive, checksum or (CHECKSUM if source == ADDRESS else ""), remove=is_address)
        try:
            unpack(archive, folder)
        except InputError:
            if is_address:
                archive.unlink()  # otherwise the next call would use the bad archive again
            raise
    return {"audio": str(folder), **report(folder), "reused": reused}


def check(archive: Path, checksum: str, *, remove: bool) -> None:
    """Check an archive's SHA-256.

    Args:
        archive: the file.
        checksum: 64 hexadecimal digits; empty to skip the check.
        remove: delete the file if its checksum differs, so that the next call downloads it again.
    """
    if not archive.is_file():
        raise InputError(f"{archive}: no such file; give the path or the URL of an archive")
    if not checksum:
        return
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != checksum.lower():
        if remove:
            archive.unlink()
        raise InputError(
            f"{archive}: has SHA-256 {found}, not {checksum}; "
            + (
                "the archive was deleted; run fetch again"
                if remove
                else "download the archive again"
            )
        )


def unpack(archive: Path, folder: Path) -> None:
    """Extract the tracks of an archive into a new folder; after an error, no folder is left.

    Only members whose names match `MEMBER` are extracted, so no other files are created. Each file
    is written to the path that the pattern's two groups form, genre and file name, so no file is
    created outside the folder.
    """
    temporary = folder.with_name(f"{files.TEMPORARY}{uuid.uuid4().hex}")
    try:
        n_tracks = 0
        with _members(archive) as members:
            for name, contents in members:
                if match := MEMBER.search(name):
                    _write(contents, temporary / match[1] / match[2])
                    n_tracks += 1
        if not n_tracks:
            raise InputError(
                f"{archive}: contains no genres/<genre>/<genre>.00000.wav; give an archive of GTZAN"
            )
        for path in (temporary, *temporary.iterdir()):
            files.sync_folder(path)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(contents: IO[bytes], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        shutil.copyfileobj(contents, out)


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Open an archive, and yield an iterator over the names and contents of its files."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                found = ((each.filename, zipped.open(each)) for each in zipped.infolist())
                with closing(_one_by_one(found)) as members:
                    yield members
        else:
            with tarfile.open(archive) as tar:
                opened = ((each.name, tar.extractfile(each)) for each in tar if each.isreg())
                with closing(_one_by_one((name, file) for name, file in opened if file)) as members:
                    yield members
                while tar.fileobj and tar.fileobj.read(BLOCK):
                    pass  # read to the end: decompression verifies the checksum only there
    except DAMAGED as error:
        raise InputError(
            f"{archive}: not a complete archive ({error or 'it ends too early'}); download the "
            "archive again"
        ) from None


def _one_by_one(
    members: Iterable[tuple[str, IO[bytes]]],
) -> Generator[tuple[str, IO[bytes]], None, None]:
    """Yield open members; close each one before the next is opened or when the caller stops."""
    for name, contents in members:
        with contents:
            yield name, contents


def report(folder: Path) -> dict[str, Any]:
    """Count the tracks, and log their known faults."""
    tracks = sorted(path for path in folder.glob("*/*") if path.is_file())
    genres = Counter(path.parent.name for path in tracks)
    if len(tracks) != N_TRACKS or len(genres) != N_GENRES:
        logger.warning(
            "%s: contains %d tracks in %d genres, but GTZAN has %d tracks in %d genres",
            *(folder, len(tracks), len(genres), N_TRACKS, N_GENRES),
        )
    clean = assignment.read(FILTERED).splits
    n_faulty = sum(path.stem not in clean for path in tracks)
    logger.warning(
        "%d of the tracks are repetitions, mislabelled or distorted (Sturm 2013); `split "
        "--assigned-by %s` leaves them out and keeps each artist in one split",
        *(n_faulty, FILTERED),
    )
    if any(path.name == UNREADABLE for path in tracks):
        logger.warning(
            "%s is damaged in many copies of GTZAN; `scan` reports the file if it is damaged",
            UNREADABLE,
        )
    return {"n_tracks": len(tracks), "n_faulty": n_faulty, "genres": dict(sorted(genres.items()))}
