"""Our images are plain PNGs of any length; pictures of other programs become grey."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.io import read_image

from music_genre.errors import InputError
from music_genre.features import pictures


@pytest.mark.filterwarnings("ignore:The image decoding.*TorchVision:DeprecationWarning")
@pytest.mark.parametrize("shape", [(1, 1), (128, 1_293), (3, 70_000)])
def test_any_reader_reads_what_was_written(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    pictures.write_picture(tmp_path / "x.png", shape, np.array_split(pixels, min(2, shape[0])))
    with Image.open(tmp_path / "x.png") as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", shape[::-1])
        assert np.array_equal(np.asarray(picture), pixels)
    assert np.array_equal(read_image(str(tmp_path / "x.png"))[0].numpy(), pixels)
    assert np.array_equal(pictures.read_picture(tmp_path / "x.png", shape[0]), pixels)


def test_the_picture_of_a_day_is_read_without_a_warning(tmp_path: Path) -> None:
    """Pillow warns of a decompression bomb above 90 million pixels, which 5 hours of music have."""
    shape = (128, 710_000)
    rows = (np.full((1, shape[1]), row, np.uint8) for row in range(shape[0]))
    pictures.write_picture(tmp_path / "x.png", shape, rows)
    pixels = pictures.read_picture(tmp_path / "x.png", 128)
    assert pixels.shape == shape
    assert np.array_equal(pixels[:, -1], np.arange(128))


def test_a_small_file_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    header = struct.pack(">2I5B", 40_000, 40_000, 8, 2, 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(bytes(1_000)), b"IEND": b""}
    with (tmp_path / "x.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in parts.items():
            file.write(struct.pack(">I", len(data)) + kind + data)
            file.write(struct.pack(">I", zlib.crc32(kind + data)))
    with pytest.raises(InputError, match=r"x\.png: too large: 1600000000 pixels"):
        pictures.read_picture(tmp_path / "x.png", 128)


def test_coloured_pictures_become_grey_of_the_right_height(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (432, 288), (200, 200, 200, 0))
    picture.save(tmp_path / "x.png")
    pixels = pictures.read_picture(tmp_path / "x.png", 128)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (128, 192)
    assert np.all(pixels == 200)  # transparency is ignored


def test_sixteen_bits_of_grey_are_scaled_not_cut_off(tmp_path: Path) -> None:
    levels = np.linspace(0, 0xFFFF, 128 * 100).reshape(128, 100).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "x.png")
    assert np.array_equal(pictures.read_picture(tmp_path / "x.png", 128), levels >> 8)


def test_pixels_of_no_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(InputError, match="the pixels are neither 8-bit nor 16-bit"):
        pictures.read_picture(tmp_path / "x.tiff", 8)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("hello")
    with pytest.raises(InputError, match=r"x\.png: not a picture"):
        pictures.read_picture(tmp_path / "x.png", 128)
    with pytest.raises(InputError, match=r"y\.png: is missing"):
        pictures.read_picture(tmp_path / "y.png", 128)
