"""Write and read greyscale pictures."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from music_genre.audio.decoding import patience
from music_genre.audio.inspection import Kind
from music_genre.config import PICTURE_ROWS
from music_genre.errors import AudioError, PictureError
from music_genre.store import files

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
REJECTED = ".rejected"
"""Suffix of the text file that `extract` writes if it cannot draw an image."""
MOST_PIXELS = 1 << 30
"""Pixel limit for pictures in the format of `write_picture`: 54 hours of audio, 1 GiB."""
MOST_FOREIGN_PIXELS = 1 << 27
"""Pixel limit for other pictures. Converting this many pixels to grey takes 0.5 GiB of memory."""
MOST_STORED = 0xFFFF
"""Maximum size in bytes of a stored deflate block."""


def write_picture(path: Path, shape: tuple[int, int], bands: Iterable[NDArray[np.uint8]]) -> None:
    """Write a greyscale PNG atomically; the caller must make its name durable (`sync_folder`).

    Pixels are stored uncompressed. A spectrogram is so noisy that zlib's fastest level saves only a
    third of the size. That level takes 4.6 ms a track instead of 0.1 ms (measured with Pillow).

    Args:
        path: the file to make.
        shape: (height, width) in pixels.
        bands: (n_rows, width) uint8 each, from top to bottom; together they have `height` rows.

    Source: PNG specification, third edition; RFC 1950 and 1951 for its zlib stream.
    """
    height, width = shape
    with files.atomic_write(path, lasting=False) as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        # 8 bits, grey, compression method 0, filter method 0 (PNG has no others), no interlacing.
        _write_chunk(file, b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
        for piece in _stored(bands):
            _write_chunk(file, b"IDAT", piece)
        _write_chunk(file, b"IEND", b"")


def _stored(bands: Iterable[NDArray[np.uint8]]) -> Iterator[bytes]:
    """Yield a zlib stream of uncompressed blocks; Python's zlib would need 0.2 ms more a track."""
    yield b"\x78\x01"
    checksum = 1
    for band in bands:
        rows = np.zeros((band.shape[0], 1 + band.shape[1]), np.uint8)
        rows[:, 1:] = band  # the first byte of a row is its filter: 0, none
        data = rows.reshape(-1).data
        checksum = zlib.adler32(data, checksum)
        for first in range(0, len(data), MOST_STORED):
            piece = data[first : first + MOST_STORED]
            yield struct.pack("<B2H", 0, len(piece), MOST_STORED - len(piece)) + piece
    yield struct.pack("<B2H", 1, 0, MOST_STORED) + struct.pack(">I", checksum)


def _write_chunk(file: IO[bytes], kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind)
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def read_picture(path: Path, n_mels: int, *, only_own: bool = False) -> NDArray[np.uint8]:
    """Read a picture as (n_mels, n_frames) uint8.

    Any spectrogram picture can be trained on: colours become grey, and transparency is ignored. If
    a picture's height is not n_mels, its height and width are scaled by the same factor, to
    n_mels rows.

    Args:
        path: the file.
        n_mels: rows of the result.
        only_own: reject pictures that are not in the format of `write_picture`.

    Raises:
        PictureError: the file is missing or not a usable picture.
        OSError: the storage cannot read the file.
    """
    # Pillow is not imported at the top, because `scan` and `extract` do not need it for audio.
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # disables Pillow's limit; `_check_size` checks instead
    try:
        with Image.open(path) as picture:
            is_own = (picture.format, picture.mode, picture.height) == ("PNG", "L", n_mels)
            if only_own and not is_own:
                raise PictureError(path, "not an image that extract drew", "give the audio file")
            _check_size(path, picture.size, own=is_own)
            grey = _grey(picture, path)
            if grey.height != n_mels:
                width = max(1, round(grey.width * n_mels / grey.height))
                grey = grey.resize((width, n_mels), Image.Resampling.BILINEAR)
            return np.asarray(grey)
    except FileNotFoundError:
        raise PictureError(path, "is missing", "run scan or extract again, then split") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # raised by storage, not Pillow
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PictureError(path, f"not a picture ({reason})") from None


def _grey(picture: "Image.Image", path: Path) -> "Image.Image":
    """Convert any picture to 8 bits of grey."""
    from PIL import Image

    if picture.mode == "L":
        return picture
    if not picture.mode.startswith(("I", "F")):
        return picture.convert("RGB").convert("L")
    # Pillow would clip 16-bit values at 255 instead of scaling them.
    levels = np.asarray(picture)
    if picture.mode == "F" or levels.min() < 0 or levels.max() > 0xFFFF:
        raise PictureError(
            path, "the pixels are neither 8-bit nor 16-bit", "save the picture as 8-bit greyscale"
        )
    return Image.fromarray((levels >> 8).astype(np.uint8))


def _check_size(path: Path, size: tuple[int, int], *, own: bool) -> None:
    """Reject a picture that is too large; pictures in the format of `extract` may be larger."""
    n_pixels = size[0] * size[1]
    most = MOST_PIXELS if own else MOST_FOREIGN_PIXELS
    if n_pixels > most:
        reason = f"too large: {n_pixels} pixels, the maximum is {most}"
        raise PictureError(path, reason, "make the picture smaller")


def _describe(path: Path, *, with_tags: bool) -> tuple[float, dict[str, str]]:  # noqa: ARG001
    """Check that training can read a picture; return a length of 0 seconds and no tags.

    If `extract` cannot draw an image, it writes a file with the suffix `REJECTED` instead. This
    file contains the reason.

    Raises:
        AudioError: the picture cannot be used, or `extract` could not draw it.
    """
    if path.suffix == REJECTED:
        raise AudioError(path.read_text("utf-8", "replace").strip())
    try:
        read_picture(path, PICTURE_ROWS)
    except PictureError as error:
        raise AudioError(error.reason) from None
    return 0.0, {}


PICTURES = Kind("pictures", "png", SUFFIXES, "images_original", _describe, patience, REJECTED)
"""Spectrogram pictures from other sources, in genre folders."""
