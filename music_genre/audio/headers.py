"""Read the size of the audio that the header of an audio file announces.

From a truncated uncompressed file, libsndfile reads fewer frames and reports no error. So this
module parses the headers of uncompressed files.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

UNKNOWN_SIZES = {0xFFFFFFFF, 0x7FFFF000}
"""Sizes in streamed audio that mean "unknown": most programs write the first, SoX the second."""
MOST_CHUNKS = 10_000
"""Maximum number of chunks to read. A file of zeros looks like very many empty chunks; reading all
of them would take minutes."""
W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")


def data_bytes(path: Path) -> tuple[int, int]:
    """Return how many bytes of audio a file's header announces, and how many are present.

    Returns:
        (announced, present) bytes of audio; (0, 0) if the header does not state the size.

    Source: RIFF MCI of 1991; EBU Tech 3306 (RF64); ITU-R BS.2088 (BW64); Sony's Wave64 of 2006;
        AIFF 1.3 and AIFF-C of 1991; the manual page audio(5) for .au; Apple's CAF 1.0.
    """
    with path.open("rb") as file:
        reader = READERS.get(file.read(4))
        announced = reader(file) if reader else None
        return (announced, max(0, path.stat().st_size - file.tell())) if announced else (0, 0)


def mp3_says_its_length(path: Path) -> bool:
    """Tell whether an MP3 states its length in its first frame.

    If it does not, decoders guess the length from the file size.

    Source: LAME's and Fraunhofer's info tags (Xing, Info, VBRI); ID3 2.4 for the tag before
        the first frame.
    """
    with path.open("rb") as file:
        begin = file.read(10)
        if begin[:3] == b"ID3":  # each byte of the tag's size holds seven bits
            file.seek(
                sum(byte << 7 * place for place, byte in enumerate(begin[:5:-1])), os.SEEK_CUR
            )
        first = begin + file.read(4096)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def _riff(file: IO[bytes]) -> int | None:
    """Seek to the audio of a WAV; return the audio's size in bytes, None if unknown."""
    long_size = 0
    file.seek(12)
    for chunk in _chunk_headers(file, 8):
        size = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            unknown = size in UNKNOWN_SIZES
            return (long_size or None) if unknown else size
        if chunk[:4] == b"ds64":  # this chunk holds the file's size, then the audio's size
            long_size = int.from_bytes(file.read(16)[8:], "little")
            size -= 16
        file.seek(size + size % 2, os.SEEK_CUR)
    return None


def _rifx(file: IO[bytes]) -> int | None:
    return _chunks(file, b"data")


def _aiff(file: IO[bytes]) -> int | None:
    size = _chunks(file, b"SSND")
    file.seek(8, os.SEEK_CUR)  # skip the fields offset and block size
    return max(0, size - 8) if size else None


def _chunk_headers(file: IO[bytes], n_bytes: int) -> Iterator[bytes]:
    for _ in range(MOST_CHUNKS):
        if len(header := file.read(n_bytes)) < n_bytes:
            return
        yield header


def _chunks(file: IO[bytes], wanted: bytes) -> int | None:
    """Seek to a chunk of a big-endian file; return the chunk's size in bytes, None if unknown."""
    file.seek(12)
    for chunk in _chunk_headers(file, 8):
        size = int.from_bytes(chunk[4:], "big")
        if chunk[:4] == wanted:
            return None if size in UNKNOWN_SIZES else size
        file.seek(size + size % 2, os.SEEK_CUR)
    return None


def _w64(file: IO[bytes]) -> int | None:
    if file.read(12) != W64_RIFF[4:]:
        return None
    file.seek(40)
    for chunk in _chunk_headers(file, 24):
        size = int.from_bytes(chunk[16:], "little") - 24  # the chunk's size includes this header
        if chunk[:16] == W64_DATA:
            return size
        if size < 0:
            return None
        file.seek(size + -size % 8, os.SEEK_CUR)
    return None


def _au(file: IO[bytes]) -> int | None:
    offset, size = (int.from_bytes(file.read(4), "big") for _ in range(2))
    file.seek(offset)
    return None if size in UNKNOWN_SIZES else size


def _caf(file: IO[bytes]) -> int | None:
    file.seek(8)
    for chunk in _chunk_headers(file, 12):
        size = int.from_bytes(chunk[4:], "big", signed=True)
        if chunk[:4] == b"data":
            file.seek(4, os.SEEK_CUR)  # skip the edit count
            return size - 4 if size >= 0 else None
        if size < 0:
            return None
        file.seek(size, os.SEEK_CUR)
    return None


READERS: dict[bytes, Callable[[IO[bytes]], int | None]] = {
    b"RIFF": _riff,
    b"RF64": _riff,
    b"BW64": _riff,
    b"RIFX": _rifx,
    b"FORM": _aiff,
    b"riff": _w64,
    b".snd": _au,
    b"caff": _caf,
}
"""Maps the first four bytes of a file to the function that reads its header."""
