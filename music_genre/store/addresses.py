"""Addresses of files and folders: only this module knows their format."""

import os
from pathlib import Path

from music_genre.errors import InputError


def local_path(address: str | os.PathLike[str]) -> Path:
    """Turn an address into an absolute local path.

    Raises:
        InputError: the address is a URL; only local folders can be read.
    """
    text = os.fspath(address)
    if "://" in text:
        raise InputError(f"{text}: only local folders can be read; give a path on a shared volume")
    return Path(text).absolute()


def is_folder(path: Path) -> bool:
    """Tell whether a path is a folder; return False if the path cannot be inspected."""
    try:
        return path.is_dir()
    except OSError:  # the name is too long, or a parent folder cannot be searched
        return False


def reference(target: Path, base: Path) -> str:
    """Return `target` as text that `resolve` can read, relative to `base` if possible.

    The text is relative if both paths have a common parent other than the root, else absolute. A
    relative text stays valid when both folders move together or are mounted elsewhere.
    """
    common = os.path.commonpath([target.absolute(), base.absolute()])
    if common == os.path.sep:
        return str(target.absolute())
    return os.path.relpath(target.absolute(), base.absolute())


def resolve(written: str, base: Path) -> Path:
    """Undo `reference`: return the absolute path, given the same base folder."""
    return Path(os.path.normpath(base.absolute() / written))
