"""Hold the images of many tracks, in memory or in one file, and cut crops from the images."""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from music_genre.dataset.examples import Example
from music_genre.features import pictures
from music_genre.resources import usable_cores, usable_memory
from music_genre.store import files, keys, locks

RESIDENT_SHARE: Final = 1 / 3
"""In mode auto, images are kept in memory if they take less than this share of the free memory.
While the images are joined into one tensor, memory holds two copies of them."""
SAMPLED: Final = 16
"""Maximum number of images that are read to estimate the size of all images."""
READ_AHEAD: Final = 4
"""Maximum number of images per core that are read before the caller takes them."""


class Images:
    """Images of many tracks, joined along time in one tensor, so that one gather reads a batch."""

    def __init__(self, pixels: Tensor, lengths: Tensor, labels: Tensor) -> None:
        """Keep the given tensors.

        Args:
            pixels: (total_frames, n_mels) uint8; a row is one frame.
            lengths: (n_tracks,) int64 on the CPU: number of frames of each track.
            labels: (n_tracks,) int64 on the CPU: index of each track's genre in the list of genres.
        """
        self.pixels, self.lengths, self.labels = pixels, lengths, labels
        self.device = pixels.device
        self.n_mels = pixels.shape[1]
        self.offsets = lengths.cumsum(0) - lengths

    def read(self, tracks: Tensor, starts: Tensor, crop_frames: int) -> Tensor:
        """Request crops with `ask`, wait for them, and return them."""
        return self.ask(tracks, starts, crop_frames)()

    def ask(self, tracks: Tensor, starts: Tensor, crop_frames: int) -> Callable[[], Tensor]:
        """Request one crop per track; a crop that passes its track's end wraps around to the start.

        If the images are in a file, reading starts at once and goes on while the caller computes.

        Args:
            tracks: (batch,) int64 track numbers, on the CPU.
            starts: (batch,) int64 first frame of each crop, counted from the start of its track, on
                the CPU.
            crop_frames: number of frames in a crop.

        Returns:
            A function that waits for the crops and returns them: (batch, crop_frames, n_mels)
            uint8, the input of `normalise`.
        """

        def gather() -> Tensor:
            frames = (starts[:, None] + torch.arange(crop_frames)) % self.lengths[tracks, None]
            rows = frames + self.offsets[tracks, None]
            return self.pixels[rows.to(self.device, non_blocking=True)]

        return gather

    def to(self, device: Any) -> "Images":
        """Return the images with their pixels on a device."""
        return Images(self.pixels.to(device), self.lengths, self.labels)


class StreamedImages(Images):
    """Images of many tracks in one file, which may be larger than memory.

    The file is read, not memory-mapped, for two reasons. If the storage of a mapped file fails,
    SIGBUS kills the process. And mapped pages count as memory of this process.
    """

    def __init__(self, path: Path, n_mels: int, lengths: Tensor, labels: Tensor) -> None:
        """Open a file of (total_frames, n_mels) uint8; `lengths` and `labels` are as in Images."""
        super().__init__(torch.empty(0, n_mels, dtype=torch.uint8), lengths, labels)
        self.path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._reader = ThreadPoolExecutor(1)

    def ask(self, tracks: Tensor, starts: Tensor, crop_frames: int) -> Callable[[], Tensor]:
        """Start reading the crops, as described in Images.ask."""
        pin = self.device.type == "cuda"
        crops = torch.empty(
            (len(tracks), crop_frames, self.n_mels), dtype=torch.uint8, pin_memory=pin
        )
        each = (self.offsets[tracks], self.lengths[tracks], starts)
        places = zip(*(values.tolist() for values in each), crops.numpy(), strict=True)
        reading = self._reader.submit(self._read_crops, places)

        def wait() -> Tensor:
            reading.result()
            return crops.to(self.device, non_blocking=True)

        return wait

    def _read_crops(self, places: Iterable[tuple[int, int, int, NDArray[np.uint8]]]) -> None:
        # Do not call torch here: torch would start OpenMP threads for this thread too. With more
        # threads than cores, libgomp puts threads to sleep between operations, which halves the
        # speed (measured).
        for offset, length, start, crop in places:
            self._read_crop(offset, length, start, crop)

    def _read_crop(self, offset: int, length: int, start: int, crop: NDArray[np.uint8]) -> None:
        done = 0
        while done < len(crop):
            part = crop[done : done + length - start]
            place = (offset + start) * self.n_mels
            if os.preadv(self._file, [part.data], place) != part.nbytes:
                reason = "ends before the last frame; delete the folder that contains this file"
                raise OSError(5, reason, str(self.path))
            done, start = done + len(part), 0

    def to(self, device: Any) -> "Images":
        """Set the device that crops are copied to."""
        self.device = torch.device(device)
        return self


def normalise(crops: Tensor) -> Tensor:
    """Turn (batch, crop_frames, n_mels) uint8 crops into the input of a model.

    Returns:
        (batch, 1, n_mels, crop_frames) float32 in [-2, 2], on the crops' device.
    """
    return crops.transpose(1, 2).unsqueeze(1).float().div(63.75).sub(2.0).contiguous()


def open_images(
    examples: list[Example],
    images_dir: Path,
    genres: list[str],
    n_mels: int,
    *,
    device: torch.device,
    store: Path,
    data_key: str,
    mode: str = "auto",
) -> Images:
    """Read examples' images into memory, or write them to one file from which they are streamed.

    Args:
        examples: the tracks of one split.
        images_dir: the folder of their images.
        genres: names of the genres; a label is an index into this list.
        n_mels: number of rows of an image.
        device: the device that crops are copied to.
        store: the artifact folder; the file of streamed images is written in it.
        data_key: content key of the data set that the images belong to.
        mode: resident (in memory), streamed (from the file), or auto (streamed only if the images
            do not fit into memory).

    Raises:
        InputError: an image is missing or cannot be read.
    """
    paths = [images_dir / example.image for example in examples]
    if mode == "auto":
        fits = estimate_bytes(paths, n_mels) < RESIDENT_SHARE * _free_bytes(device)
        mode = "resident" if fits else "streamed"
    if mode == "resident":
        return load_images(examples, images_dir, genres, n_mels).to(device)
    names = [example.image for example in examples]
    folder = store / "frames" / keys.content_key(data_key, names, n_mels)
    lengths = _write_frames(paths, n_mels, folder)
    labels = torch.tensor([genres.index(example.genre) for example in examples])
    return StreamedImages(folder / "frames.u8", n_mels, lengths, labels).to(device)


def _free_bytes(device: torch.device) -> int:
    """Return how many bytes of memory are free for images.

    Images for a GPU are stacked in the host's memory, then copied to the GPU's memory. They must
    fit into both memories, so the smaller number of free bytes is returned.
    """
    host = usable_memory()
    return min(host, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else host


def estimate_bytes(paths: list[Path], n_mels: int) -> int:
    """Estimate from a sample how many bytes images take in memory."""
    sampled = paths[:: math.ceil(len(paths) / SAMPLED)] if paths else []
    sizes = [pictures.read_picture(path, n_mels).size for path in sampled]
    return round(sum(sizes) / max(1, len(sizes)) * len(paths))


def read_images(paths: list[Path], n_mels: int) -> Iterator[NDArray[np.uint8]]:
    """Yield images in order, read by one thread per core; only a few wait in memory at a time."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        n_ahead = READ_AHEAD * usable_cores()
        for first in range(0, len(paths), n_ahead):
            some = paths[first : first + n_ahead]
            yield from pool.map(lambda path: pictures.read_picture(path, n_mels), some)


def _are_complete(folder: Path, n_mels: int) -> bool:
    """Tell whether frames.u8 has its full size; an interrupted folder copy can truncate it."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        n_frames = int(np.load(folder / "lengths.npy").sum())
        return (folder / "frames.u8").stat().st_size == n_frames * n_mels
    return False


def _write_frames(paths: list[Path], n_mels: int, folder: Path) -> Tensor:
    """Write frames.u8 unless it is complete; return each track's frame count, (n_tracks,) int64."""
    index = folder / "lengths.npy"
    with locks.folder_lock(folder):
        files.sweep(folder, locked=True)
        if not _are_complete(folder, n_mels):
            lengths = np.zeros(len(paths), np.int64)
            with files.atomic_write(folder / "frames.u8") as file:
                for number, image in enumerate(read_images(paths, n_mels)):
                    file.write(np.ascontiguousarray(image.T).data)
                    lengths[number] = image.shape[1]
            with files.atomic_write(index) as file:
                np.save(file, lengths)
    return torch.from_numpy(np.load(index))


def load_images(
    examples: list[Example], images_dir: Path, genres: list[str], n_mels: int
) -> Images:
    """Read examples' images into memory.

    Raises:
        InputError: an image is missing or cannot be read.
    """
    images = list(read_images([images_dir / example.image for example in examples], n_mels))
    return stack_images(images, [genres.index(example.genre) for example in examples])


def stack_images(images: list[NDArray[np.uint8]], labels: list[int]) -> Images:
    """Join (n_mels, n_frames) uint8 images along time."""
    return Images(
        pixels=torch.from_numpy(np.concatenate([image.T for image in images])),
        lengths=torch.tensor([image.shape[1] for image in images]),
        labels=torch.tensor(labels),
    )
