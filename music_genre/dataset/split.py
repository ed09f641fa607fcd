"""Assign tracks, group by group, to train, validation and test."""

import hashlib
import logging
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from music_genre.audio.catalogue import Rejection
from music_genre.config import SPLITS, FeatureConfig, SplitConfig
from music_genre.dataset import assignment
from music_genre.dataset.examples import Example, Found, find
from music_genre.errors import InputError
from music_genre.store import addresses, keys, records, tables

logger = logging.getLogger(__name__)

RECIPE = 2
"""Increase this with every code change that gives another split for the same input and settings."""

NAMED = 10
"""Maximum number of tracks that a log line names."""


@dataclass(frozen=True)
class Split:
    """The contents of a folder that `split` wrote."""

    key: str
    data_key: str
    """The content key of the split's tracks, including their groups and images."""
    genres: list[str]
    features: FeatureConfig | None
    """How the images were drawn; None for pictures that this package did not draw."""
    images_dir: Path
    examples: list[Example]

    def examples_in(self, name: str) -> list[Example]:
        """Return the examples of train, validation or test."""
        return [example for example in self.examples if example.split == name]


def assign_splits(examples: list[Example], config: SplitConfig) -> list[Example]:
    """Assign groups to the splits, genre by genre.

    Each genre's groups are ordered by a hash of seed and group. The first groups go to test,
    the next to validation, the others to train. Thanks to the hash, adding tracks to a catalogue
    moves few of the old tracks to another split.

    Raises:
        InputError: a genre has fewer than three groups. A group with tracks of several genres
            counts only for its most frequent genre.
    """
    groups: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        groups[example.group][example.genre] += 1
    by_genre = defaultdict(list)
    for group, genres in groups.items():
        # Count a group only for its most frequent genre; in a tie, for the alphabetically first.
        genre = min(genres, key=lambda name: (-genres[name], name))
        by_genre[genre].append(group)
    split_of = {}
    for genre in sorted({example.genre for example in examples}):
        ordered = sorted(by_genre[genre], key=lambda group: _hash(config.seed, group))
        if len(ordered) < 3:
            raise InputError(
                f"genre {genre}: has {len(ordered)} groups, but train, validation and test need "
                "one group each; add recordings or choose another --group-by"
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


def assign_listed(examples: list[Example], listed: assignment.Assignment) -> list[Example]:
    """Assign tracks to the splits that a list names; leave out tracks that are not listed.

    Raises:
        InputError: a group has tracks in several splits, a split is empty, or a genre has no track
            in train.
    """
    split_of = listed.deal(example.path for example in examples)
    dealt = [replace(e, split=split_of[e.path]) for e in examples if e.path in split_of]
    first: dict[tuple[str, str], str] = {}
    places: defaultdict[str, list[str]] = defaultdict(list)
    for example in dealt:
        if first.setdefault((example.group, example.split), example.path) == example.path:
            places[example.group].append(f"{example.split} ({example.path})")
    spanning = [group for group, found in places.items() if len(found) > 1]
    if spanning:
        raise InputError(
            f"{listed.source}: {len(spanning)} of {len(places)} groups span splits (the first: "
            f"{spanning[0]} is in {' and '.join(places[spanning[0]])}); list all "
            "tracks of a group in one split, or leave some of them out"
        )
    unlearned = {e.genre for e in dealt} - {e.genre for e in dealt if e.split == "train"}
    if unlearned:
        raise InputError(
            f"{listed.source}: has no track of genre {min(unlearned)} in train; list a track "
            "of this genre in train, or leave the genre out"
        )
    return dealt


def _report_differences(
    listed: assignment.Assignment, examples: list[Example], rejections: list[Rejection]
) -> dict[str, int]:
    """Count and log the tracks that are not listed, and the listed tracks that cannot be used."""
    names = {example.path: listed.name_of(example.path) for example in examples}
    n_left_out = list(names.values()).count(None)
    if n_left_out:
        logger.info("%s: %d tracks are not listed and are left out", listed.source, n_left_out)
    reasons = {listed.name_of(rejected.path): rejected.reason for rejected in rejections}
    unusable = sorted(listed.splits.keys() - names.values())
    if unusable:
        named = [f"{name} ({reasons.get(name, 'not in the catalogue')})" for name in unusable]
        more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        shown = ", ".join(named[:NAMED]) + more
        logger.warning("%s: %d listed tracks cannot be used: %s", listed.source, len(named), shown)
    return {"n_left_out": n_left_out, "n_listed_unusable": len(unusable)}


def split(
    catalogue_dir: Path,
    images_dir: Path | None,
    store: Path,
    config: SplitConfig,
    *,
    assigned_by: str | None = None,
) -> dict[str, Any]:
    """Assign a catalogue's tracks to train, validation and test.

    Args:
        catalogue_dir: the folder that `scan` made.
        images_dir: the folder that `extract` made; None if the catalogue lists pictures.
        store: the artifact folder; the split is written to a subfolder of its own.
        config: seed, shares, and whether a group is a recording or an artist.
        assigned_by: the name of a published list, or the path of a CSV file. If given, this list
            decides which split a track is in, and seed and shares are ignored.

    Returns:
        The result: split address and counts. With a list, the counts include the tracks that are
        not listed and the listed tracks that cannot be used.

    Raises:
        InputError: tracks have no image yet, a genre has too few groups, or the list cannot be
            applied to the tracks.
    """
    found = find(catalogue_dir, images_dir, config.group_by)
    examples, basis, counted = found.examples, asdict(config), {}
    if assigned_by is not None:
        listed = assignment.read(assigned_by)
        counted = _report_differences(listed, examples, found.rejections)
        examples = assign_listed(examples, listed)
        basis = {"group_by": config.group_by, "assigned_by": listed.source}
    data_key = found.key(examples)
    key = keys.content_key(data_key, [e.split for e in examples], basis, RECIPE)
    folder = store / "splits" / key
    record = records.read_json(folder / "split.json")
    reused = record is not None
    if record is None:
        record = {"key": key, "data": data_key, "settings": basis}
        dealt = assign_splits(examples, config) if assigned_by is None else examples
        record.update(_write(folder, dealt, found))
    location = addresses.reference(found.images_dir, folder)
    if record.get("images") != location:
        record = {**record, "images": location}
        records.write_json(folder / "split.json", record)
    counted = {**{name: record[name] for name in ("genres", "n_rejected")}, **counted}
    return {"split": str(folder), **record["n_tracks"], **counted, "reused": reused}


def _write(folder: Path, dealt: list[Example], found: Found) -> dict[str, Any]:
    """Write split.csv and rejected.csv; return the entries of split.json that describe them.

    Raises:
        InputError: there is only one genre.
    """
    genres = sorted({example.genre for example in dealt})
    if len(genres) < 2:
        raise InputError(
            f"{found.images_dir}: has images of {len(genres)} genre, but training needs at least "
            "two genres; add another genre"
        )
    tables.write_rows(folder / "split.csv", Example, dealt)
    tables.write_rows(folder / "rejected.csv", Rejection, found.rejections)
    features = found.features and asdict(found.features)
    return {"features": features, "n_rejected": len(found.rejections), **_counts(dealt)}


def _counts(examples: list[Example]) -> dict[str, Any]:
    """List the genres, and count the tracks and groups of train, validation and test."""
    dealt = {name: [e for e in examples if e.split == name] for name in SPLITS}
    return {
        "genres": sorted({example.genre for example in examples}),
        "n_tracks": {name: len(some) for name, some in dealt.items()},
        "n_groups": {name: len({e.group for e in some}) for name, some in dealt.items()},
    }


def read_split(folder: Path) -> Split:
    """Read a folder that `split` made.

    Raises:
        InputError: the folder is not a split.
    """
    record = records.read_record(folder / "split.json", "give the address that split printed")
    return Split(
        key=record["key"],
        data_key=record["data"],
        genres=record["genres"],
        features=FeatureConfig(**record["features"]) if record["features"] else None,
        images_dir=addresses.resolve(record["images"], folder),
        examples=tables.read_rows(folder / "split.csv", Example),
    )
