"""Lists that assign tracks to splits: a published list, given by its name, or a CSV file.

`gtzan-fault-filtered` is a partition of GTZAN that leaves out repeated and distorted tracks and
keeps each artist in one split: 443 tracks for training, 197 for validation, 290 for testing. The
licence of this partition is in the same folder as the CSV file.

Source: Kereliuk, Sturm & Larsen, "Deep Learning and Music Adversaries", IEEE Transactions on
Multimedia 17(11), 2015; copied from torchaudio.datasets.GTZAN.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from music_genre.config import SPLITS
from music_genre.errors import InputError
from music_genre.store import addresses, tables

PUBLISHED: Final = {"gtzan-fault-filtered": "gtzan_fault_filtered.csv"}
"""Name of a published list -> its file, in the folder of this module."""


@dataclass(frozen=True)
class Assignment:
    """A list of tracks, with the split of each track."""

    source: str
    """The name of the list in messages: a published name or a file name."""
    splits: dict[str, str]
    """Name in the list -> split. A name is a track's path, its path without suffix, or its stem."""

    def name_of(self, path: str) -> str | None:
        """Return the name under which a track is listed; None if the track is not listed."""
        bare = PurePosixPath(path).with_suffix("")
        return next((name for name in (path, str(bare), bare.name) if name in self.splits), None)

    def deal(self, paths: Iterable[str]) -> dict[str, str]:
        """Return path -> split of the given tracks; leave out tracks that are not listed.

        Raises:
            InputError: two tracks match one listed name, or a split is left without tracks.
        """
        taken: dict[str, str] = {}
        example = ""
        for path in paths:
            example = path
            name = self.name_of(path)
            if name is None:
                continue
            if name in taken:
                raise InputError(
                    f"{self.source}: {name} matches both {taken[name]} and {path}; list both files "
                    "by path, or remove one of the files"
                )
            taken[name] = path
        if not taken:
            raise InputError(
                f"{self.source}: none of the {len(self.splits)} listed tracks (for example "
                f"{next(iter(self.splits))}) is in the catalogue (which lists, for example, "
                f"{example}); write paths or names as in the catalogue"
            )
        dealt = {path: self.splits[name] for name, path in taken.items()}
        for split in SPLITS:
            if split not in dealt.values():
                n_listed = sum(listed == split for listed in self.splits.values())
                raise InputError(
                    f"{self.source}: {split} has no tracks, because none of the {n_listed} tracks "
                    f"listed for {split} can be used; list other tracks or add the missing audio"
                )
        return dealt


def read(source: str) -> Assignment:
    """Read a published list by its name, or a CSV file with columns path (or track) and split.

    Raises:
        InputError: there is no such list, it lacks a column, a row has no track or no valid split,
            or two rows put a track into different splits.
    """
    path = addresses.local_path(source)
    if source in PUBLISHED:
        path = Path(__file__).with_name(PUBLISHED[source])
    elif not path.is_file():
        raise InputError(
            f"--assigned-by {source}: no such file; give a CSV file or one of the published lists: "
            f"{', '.join(PUBLISHED)}"
        )
    rows = tables.read_table(path)
    column = next((name for name in ("path", "track") if rows and name in rows[0]), None)
    if column is None or "split" not in rows[0]:
        raise InputError(
            f"{path}: has no rows, or lacks the columns path (or track) and split; add the missing "
            "rows or columns"
        )
    splits: dict[str, str] = {}
    for row in rows:
        name, split = row[column], row["split"]
        if not name or split not in SPLITS:
            raise InputError(
                f"{path}: the row {list(row.values())} has no track or no valid split; give a "
                f"track and one of the splits {', '.join(SPLITS)}"
            )
        if splits.setdefault(name, split) != split:
            raise InputError(
                f"{path}: {name} is listed in {splits[name]} and in {split}; keep one of these rows"
            )
    return Assignment(source if source in PUBLISHED else path.name, splits)
