"""Look up a file's recording and artist in tracks.csv, or else in the file's tags."""

import os
from pathlib import Path

from music_genre.errors import InputError
from music_genre.store import tables

Origin = tuple[str, str]
"""(recording, artist); the artist is empty if unknown."""


def from_tags(tags: dict[str, str], path: str) -> Origin:
    """Return (recording, artist); if the artist or title is missing, the recording is `path`."""
    artist, title = tags.get("artist", "").strip(), tags.get("title", "").strip()
    album = tags.get("album", "").strip()
    return (f"{artist} / {album} / {title}" if artist and title else path), artist


def read_table(audio_dir: Path, paths: list[str], *, any_suffix: bool = False) -> dict[str, Origin]:
    """Read tracks.csv; return (recording, artist) for each of `paths` that the table lists.

    Args:
        audio_dir: holds the genre folders; tracks.csv is in this folder or beside it.
        paths: the paths of the files, relative to `audio_dir`.
        any_suffix: compare only genre and name, without the suffix, so that a table of audio
            files also covers their pictures. With this option, a table beside `audio_dir` can
            describe other files; it is then no error if the table lists none of `paths`.

    Raises:
        InputError: the table lacks a column or a value, or lists none of the files. Without this
            error, a split by recording would silently become a split by file.
    """
    places = [folder / "tracks.csv" for folder in (audio_dir, audio_dir.parent)]
    table = next(filter(Path.is_file, places), None)
    if table is None:
        return {}
    rows = tables.read_table(table)
    if rows and not {"path", "track_id"} <= rows[0].keys():
        raise InputError(
            f"{table}: lacks the column path or track_id; add the missing column, or move the "
            "table to another folder"
        )
    named: dict[str, Origin] = {}
    for row in rows:
        if not row["path"] or row["track_id"] is None:
            raise InputError(
                f"{table}: the row {list(row.values())} lacks a path or a track_id; complete "
                "the row"
            )
        path = os.path.relpath(table.parent / row["path"], audio_dir)
        origin = (row["track_id"] or row["path"], row.get("artist") or "")
        named[_name(path, any_suffix)] = origin
    found = {path: named[name] for path in paths if (name := _name(path, any_suffix)) in named}
    may_be_of_others = any_suffix and table.parent != audio_dir
    if rows and not found and not may_be_of_others:
        raise InputError(
            f"{table}: lists {len(rows)} files, but none of them is in {audio_dir}; write paths "
            "relative to the table's own folder"
        )
    return found


def _name(path: str, any_suffix: bool) -> str:
    return "/".join(Path(path).with_suffix("").parts[-2:]) if any_suffix else Path(path).as_posix()


def join_groups(groups: list[str], shared: list[str]) -> list[str]:
    """Join groups whose files share something, such as their contents or a recording.

    Args:
        groups: the group of each file.
        shared: one value per file; if two files have equal values, their groups are joined.

    Returns:
        The group of each file. Joined groups get one name: the alphabetically first name.
    """
    joined: dict[str, str] = {}

    def name(group: str) -> str:
        while group in joined:
            group = joined[group]
        return group

    first: dict[str, str] = {}
    for group, value in zip(groups, shared, strict=True):
        low, high = sorted((name(group), name(first.setdefault(value, group))))
        if low != high:
            joined[high] = low
    return [name(group) for group in groups]
