"""Deal tracks to train, validation and test by group, and load their images as one tensor."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from music_genre import artifacts, audio, features
from music_genre.config import SPLITS, FeatureConfig, SplitConfig, usable_cores
from music_genre.errors import InputError

if TYPE_CHECKING:
    # torch takes seconds to import and `split` works without it.
    from torch import Tensor

logger = logging.getLogger(__name__)

RECIPE = 1
"""Raise when the same catalogue, images and settings would give another split."""

PICTURE_ROWS = 128
"""Height that pictures from elsewhere are scaled to."""
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Example:
    """One track with an image; a row of split.csv."""

    path: str
    genre: str
    group: str
    image: str
    """Relative to the images folder."""
    split: str = ""


@dataclass(frozen=True)
class Split:
    """What `split` made."""

    key: str
    genres: list[str]
    features: FeatureConfig | None
    """None for pictures that this package did not draw."""
    images_dir: Path
    examples: list[Example]

    def examples_in(self, name: str) -> list[Example]:
        """Return the examples of train, validation or test."""
        return [example for example in self.examples if example.split == name]


def assign_splits(examples: list[Example], config: SplitConfig) -> list[Example]:
    """Deal groups to the splits, genre by genre.

    Each genre's groups are ordered by a hash of seed and group, so that new tracks move few old
    ones; the first go to test, the next to validation, the others to train.

    Raises:
        InputError: a genre has fewer than three groups, or shares all it has with other genres.
    """
    groups: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        groups[example.group][example.genre] += 1
    by_genre = defaultdict(list)
    for group, genres in groups.items():
        genre = min(genres, key=lambda name: (-genres[name], name))  # a group is dealt once
        by_genre[genre].append(group)
    split_of = {}
    for genre in sorted({example.genre for example in examples}):
        ordered = sorted(by_genre[genre], key=lambda group: _hash(config.seed, group))
        if len(ordered) < 3:
            raise InputError(
                f"genre {genre}: {len(ordered)} groups, but train, validation and test need one "
                "each; add recordings or group otherwise"
            )
        n_test = min(max(1, round(config.test * len(ordered))), len(ordered) - 2)
        n_validation = max(1, round(config.validation * len(ordered)))
        n_validation = min(n_validation, len(ordered) - n_test - 1)
        for rank, group in enumerate(ordered):
            held_out = "test" if rank < n_test else "validation"
            split_of[group] = held_out if rank < n_test + n_validation else "train"
    return [replace(example, split=split_of[example.group]) for example in examples]


def _hash(seed: int, group: str) -> bytes:
    text = f"{seed} {group}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=8).digest()


def split(
    catalogue_dir: Path | None, images_dir: Path, store: Path, config: SplitConfig
) -> dict[str, Any]:
    """Deal a catalogue's tracks to train, validation and test.

    Args:
        catalogue_dir: what `scan` made; None for a folder of pictures by genre, each of which
            is its own group.
        images_dir: what `extract` made.
        store: the artifact folder; the split gets a folder of its own in it.
        config: seed, shares and what must stay together.

    Returns:
        The result: split address and counts.

    Raises:
        InputError: tracks have no image yet, or a genre has too few groups.
    """
    settings: FeatureConfig | None
    rejections: list[audio.Rejection]
    if catalogue_dir is None:
        settings, rejections = None, []
        examples = find_pictures(images_dir)
        contents = [artifacts.file_checksum(images_dir / example.image) for example in examples]
    else:
        settings = read_features(images_dir)
        examples, rejections = find_images(catalogue_dir, images_dir, settings, config.group_by)
        contents = []  # an image's name holds its content key
    genres = sorted({example.genre for example in examples})
    if len(genres) < 2:
        raise InputError(f"{images_dir}: images of {len(genres)} genre, two or more are needed")
    key = artifacts.content_key(
        list(map(asdict, examples)), contents, settings and asdict(settings), asdict(config), RECIPE
    )
    folder = store / "splits" / key
    record = artifacts.read_json(folder / "split.json")
    reused = record is not None
    if record is None:
        examples = assign_splits(examples, config)
        counts = Counter(example.split for example in examples)
        record = {
            "key": key,
            "genres": genres,
            "features": settings and asdict(settings),
            "settings": asdict(config),
            "n_tracks": {name: counts[name] for name in SPLITS},
            "n_groups": {
                name: len({e.group for e in examples if e.split == name}) for name in SPLITS
            },
            "n_rejected": len(rejections),
        }
        artifacts.write_rows(folder / "split.csv", Example, examples)
        artifacts.write_rows(folder / "rejected.csv", audio.Rejection, rejections)
    location = artifacts.reference(images_dir, folder)
    if record.get("images") != location:
        record = {**record, "images": location}
        artifacts.write_json(folder / "split.json", record)
    counted = {"genres": record["genres"], "n_rejected": record["n_rejected"]}
    return {"split": str(folder), **record["n_tracks"], **counted, "reused": reused}


def find_images(
    catalogue_dir: Path, images_dir: Path, settings: FeatureConfig, group_by: str
) -> tuple[list[Example], list[audio.Rejection]]:
    """Pair a catalogue's tracks with their images or rejections.

    Raises:
        InputError: a track has neither.
    """
    _, tracks, rejections = audio.read_catalogue(catalogue_dir)
    examples, missing = [], []
    for track in tracks:
        name = features.image_path(track, settings)
        image = images_dir / name
        group = (track.artist or track.group) if group_by == "artist" else track.group
        if image.exists():
            examples.append(Example(track.path, track.genre, group, name))
        elif (rejection := features.rejection_path(image)).exists():
            rejections.append(audio.Rejection(track.path, rejection.read_text("utf-8").strip()))
        else:
            missing.append(track.path)
    if missing:
        raise InputError(
            f"{images_dir}: {len(missing)} of {len(tracks)} tracks have no image yet (the first: "
            f"{missing[0]}); run extract on all shards"
        )
    return examples, rejections


def find_pictures(images_dir: Path) -> list[Example]:
    """List a folder of genre folders of pictures, each its own group.

    Raises:
        InputError: there are none.
    """
    names = sorted(
        picture.relative_to(images_dir).as_posix()
        for picture in images_dir.glob("*/*")
        if picture.suffix.lower() in PICTURE_SUFFIXES and not picture.name.startswith(".")
    )
    if not names:
        raise InputError(
            f"{images_dir}: no pictures in genre folders; lay them out as <genre>/<track>.png"
        )
    return [Example(name, name.split("/", 1)[0], name, name) for name in names]


def read_features(images_dir: Path) -> FeatureConfig:
    """Read the settings that a folder's images were drawn with."""
    record = artifacts.read_record(
        images_dir / "features.json", "give the address that extract printed"
    )
    del record["key"]
    return FeatureConfig(**record)


def read_split(folder: Path) -> Split:
    """Read what `split` made.

    Raises:
        InputError: the folder is no split.
    """
    record = artifacts.read_record(folder / "split.json", "give the address that split printed")
    return Split(
        key=record["key"],
        genres=record["genres"],
        features=FeatureConfig(**record["features"]) if record["features"] else None,
        images_dir=artifacts.resolve(record["images"], folder),
        examples=artifacts.read_rows(folder / "split.csv", Example),
    )


@dataclass(frozen=True)
class Images:
    """Images of many tracks side by side in one tensor, so that a batch is one gather."""

    pixels: Tensor
    """(total_frames, n_mels) uint8; a row is one frame."""
    offsets: Tensor
    """(n_tracks,) int64: each track's first row."""
    lengths: Tensor
    """(n_tracks,) int64: each track's frames."""
    labels: Tensor
    """(n_tracks,) int64: indices into the genres."""

    def crops(self, tracks: Tensor, starts: Tensor, crop_frames: int) -> Tensor:
        """Cut one crop a row; one that passes its track's end goes on at its beginning.

        Args:
            tracks: (batch,) int64 track numbers.
            starts: (batch,) int64 first frames within those tracks.
            crop_frames: frames of a crop.

        Returns:
            (batch, 1, n_mels, crop_frames) float32 in [-2, 2], channels last in memory.
        """
        steps = starts.new_ones(crop_frames).cumsum(0) - 1
        frames = (starts[:, None] + steps) % self.lengths[tracks, None]
        crops = self.pixels[frames + self.offsets[tracks, None]]  # (batch, crop_frames, n_mels)
        return crops.transpose(1, 2).unsqueeze(1).float().div(63.75).sub(2.0).contiguous()

    def to(self, device: Any) -> Images:
        """Copy to a device."""
        fields = (self.pixels, self.offsets, self.lengths, self.labels)
        return Images(*(field.to(device) for field in fields))


def load_images(
    examples: list[Example], images_dir: Path, genres: list[str], n_mels: int
) -> Images:
    """Read examples' images into memory.

    Raises:
        InputError: an image is missing or cannot be read.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:
        paths = [images_dir / example.image for example in examples]
        images = list(pool.map(lambda path: features.read_image(path, n_mels), paths))
    return stack_images(images, [genres.index(example.genre) for example in examples])


def stack_images(images: list[NDArray[np.uint8]], labels: list[int]) -> Images:
    """Lay (n_mels, n_frames) uint8 images side by side."""
    import torch

    lengths = np.array([image.shape[1] for image in images], dtype=np.int64)
    return Images(
        pixels=torch.from_numpy(np.concatenate([image.T for image in images])),
        offsets=torch.from_numpy(np.cumsum(lengths) - lengths),
        lengths=torch.from_numpy(lengths),
        labels=torch.tensor(labels),
    )
