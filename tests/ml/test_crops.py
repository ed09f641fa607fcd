"""Crops have the images' own pixels, whether they are read from memory or from a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Prepared

from music_genre.dataset import crops as tensors
from music_genre.dataset import split as dataset

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)
ARRAYS = [RANDOM.integers(0, 256, (4, n), dtype=np.uint8) for n in (10, 3, 7)]


def test_crops_are_the_images_and_wrap_at_their_end() -> None:
    images = tensors.stack_images(ARRAYS, [0, 1, 0])
    read = images.read(torch.tensor([0, 1, 2]), torch.tensor([8, 0, 1]), 5)
    assert read.shape == (3, 5, 4)
    crops = tensors.normalise(read)
    assert crops.shape == (3, 1, 4, 5)
    for crop, array, start in zip(crops, ARRAYS, (8, 0, 1), strict=True):
        columns = (start + np.arange(5)) % array.shape[1]
        expected = array[:, columns] / 63.75 - 2
        np.testing.assert_allclose(crop[0].numpy(), expected, atol=1e-6)


def open_prepared(
    prepared: Prepared, store: Path, mode: str, data_key: str = "k"
) -> tensors.Images:
    split = dataset.read_split(prepared.split)
    return tensors.open_images(
        split.examples_in("train"),
        split.images_dir,
        split.genres,
        128,
        device=CPU,
        store=store,
        data_key=data_key,
        mode=mode,
    )


def test_streamed_crops_equal_resident_ones(prepared: Prepared, tmp_path: Path) -> None:
    resident, streamed = (
        open_prepared(prepared, tmp_path, mode) for mode in ("resident", "streamed")
    )
    assert isinstance(streamed, tensors.StreamedImages)
    assert torch.equal(resident.lengths, streamed.lengths)
    assert torch.equal(resident.labels, streamed.labels)
    random = torch.Generator().manual_seed(0)
    tracks = torch.randint(len(resident.lengths), (200,), generator=random)
    starts = (torch.rand(200, generator=random) * resident.lengths[tracks]).long()
    for crop_frames in (1, 32, 87, 300):  # tracks have 87 frames; 300 wraps around 3 times
        ours = streamed.read(tracks, starts, crop_frames)
        assert torch.equal(ours, resident.read(tracks, starts, crop_frames))


def test_the_file_of_frames_is_written_once(prepared: Prepared, tmp_path: Path) -> None:
    open_prepared(prepared, tmp_path, "streamed")
    (path,) = tmp_path.rglob("frames.u8")
    before = path.stat()
    open_prepared(prepared, tmp_path, "streamed")
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino
    open_prepared(prepared, tmp_path, "streamed", data_key="of other pictures")
    assert len(list(tmp_path.rglob("frames.u8"))) == 2


def test_what_a_killed_writer_left_is_swept(prepared: Prepared, tmp_path: Path) -> None:
    open_prepared(prepared, tmp_path, "streamed")
    (path,) = tmp_path.rglob("frames.u8")
    (path.parent / ".tmp-of-a-killed-one").write_bytes(b"half")
    path.with_name("lengths.npy").unlink()
    open_prepared(prepared, tmp_path, "streamed")
    assert sorted(each.name for each in path.parent.iterdir()) == [
        ".lock",
        "frames.u8",
        "lengths.npy",
    ]


def test_a_copy_that_was_cut_off_is_laid_down_anew(prepared: Prepared, tmp_path: Path) -> None:
    open_prepared(prepared, tmp_path, "streamed")
    (path,) = tmp_path.rglob("frames.u8")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    open_prepared(prepared, tmp_path, "streamed")
    assert path.read_bytes() == whole


def test_what_does_not_fit_is_streamed(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = dataset.read_split(prepared.split)
    paths = [split.images_dir / example.image for example in split.examples_in("train")]
    estimated = tensors.estimate_bytes(paths, 128)
    assert estimated == sum(128 * 87 for _ in paths)
    assert not isinstance(open_prepared(prepared, tmp_path, "auto"), tensors.StreamedImages)
    monkeypatch.setattr(tensors, "usable_memory", lambda: 2 * estimated)
    assert isinstance(open_prepared(prepared, tmp_path, "auto"), tensors.StreamedImages)


def test_a_file_cut_short_is_an_error_and_not_a_signal(prepared: Prepared, tmp_path: Path) -> None:
    images = open_prepared(prepared, tmp_path, "streamed")
    (path,) = tmp_path.rglob("frames.u8")
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(OSError, match="ends before the last frame"):
        images.read(torch.tensor([5]), torch.tensor([0]), 20)
