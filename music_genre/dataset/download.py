"""Download a large file: resume after an interruption, rename the file once it is complete."""

import http.client
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Final

from music_genre.errors import InputError, TemporaryError
from music_genre.progress import Progress, silent
from music_genre.store import files

logger = logging.getLogger(__name__)

SECONDS: Final = 30.0
"""After this many seconds without data from the server, the connection counts as broken."""
ATTEMPTS: Final = 5
"""The download fails after this many attempts in a row that bring no new byte."""
BLOCK: Final = 1 << 20
BROKEN: Final = (
    http.client.HTTPException,
    urllib.error.URLError,
    TimeoutError,
    ConnectionError,
)
"""Exceptions that a broken connection raises."""
LASTING: Final = {400, 401, 403, 404, 405, 410, 451}
"""HTTP status codes after which a retry is pointless."""


def download(address: str, into: Path, progress: Progress = silent) -> Path:
    """Download a file, resuming where an earlier attempt was cut off.

    Args:
        address: the file's URL, which starts with https:// or http://.
        into: the folder for the file. The file is named after the last part of the address. Until
            the file is complete, its name ends in .part.
        progress: called with (bytes so far, total bytes).

    Returns:
        The path of the complete file.

    Raises:
        InputError: the address is invalid, or the server has no such file.
        TemporaryError: the server does not answer, or the connection breaks again and again; the
            received part of the file is kept.
        OSError: the file cannot be written.
    """
    parts = urllib.parse.urlsplit(address)
    name = Path(urllib.parse.unquote(parts.path)).name
    if parts.scheme not in {"http", "https"} or not parts.netloc or not name:
        raise InputError(f"{address}: not the address of a file; give https://host/file")
    whole, part = into / name, into / f"{name}.part"
    if whole.exists():
        return whole
    into.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = _size(part)
        try:
            _go_on(address, part, progress)
            break
        except BROKEN as error:
            failures = failures + 1 if _size(part) == before else 0
            logger.info(
                "%s: the download was cut off at %d bytes: %s", address, _size(part), _reason(error)
            )
            if failures >= ATTEMPTS:
                raise TemporaryError(
                    f"{address}: {_reason(error)}; {_size(part)} bytes are kept in {part}; run "
                    "the same command again to resume"
                ) from None
            time.sleep(min(2.0**failures, 30) if failures else 0)
    part.replace(whole)
    files.sync_folder(into)
    return whole


def _go_on(address: str, part: Path, progress: Progress) -> None:
    """Download the missing rest of a file, and append it to the partial file.

    Raises:
        InputError: the server has no such file.
        Exception: one of `BROKEN`, if the connection broke.
    """
    have = _size(part)
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    try:
        answer = urllib.request.urlopen(request, timeout=SECONDS)  # noqa: S310 (checked above)
    except urllib.error.HTTPError as error:
        with error:
            _judge(address, error, part)
            return
    with answer, part.open("ab") as file:
        # A server can ignore the range and send the whole file: empty the partial file first.
        if have and answer.status != http.client.PARTIAL_CONTENT:
            file.truncate(0)
            have = 0
        total = have + int(answer.headers.get("Content-Length") or 0)
        while block := answer.read(BLOCK):
            file.write(block)
            progress(file.tell(), total)
        file.flush()
        os.fsync(file.fileno())
        if file.tell() < total:
            raise ConnectionError(f"only {file.tell()} of {total} bytes arrived")


def _judge(address: str, error: urllib.error.HTTPError, part: Path) -> None:
    """Raise an error, unless the HTTP error only means that the partial file is complete."""
    whole = error.headers.get("Content-Range", "").rpartition("/")[2]
    if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        if whole == str(_size(part)):
            return
        part.unlink()  # the partial file is not the beginning of the server's file
        raise ConnectionError("the partial file on the disk is not part of the server's file")
    if error.code in LASTING:
        raise InputError(
            f"{address}: the server answers {error.code} {error.reason}; correct the address"
        )
    raise ConnectionError(f"the server answers {error.code} {error.reason}")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    return " ".join(str(reason).split())


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0
