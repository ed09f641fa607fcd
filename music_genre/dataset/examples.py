"""Pair each track of a catalogue with its image and its group; a group must stay in one split."""

import contextlib
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from music_genre.audio import origins
from music_genre.audio.catalogue import (
    Catalogue,
    Rejection,
    check_contents,
    check_unchanged,
    read_catalogue,
)
from music_genre.audio.inspection import Track
from music_genre.config import FeatureConfig
from music_genre.errors import InputError
from music_genre.features.extraction import image_path, read_features, rejection_path
from music_genre.store import keys

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One track with an image; a row of split.csv."""

    path: str
    genre: str
    group: str
    image: str
    """Path relative to the images folder."""
    split: str = ""


@dataclass(frozen=True)
class Found:
    """The examples that can be assigned to splits, and the rejected tracks."""

    images_dir: Path
    features: FeatureConfig | None
    """How the images were drawn; None if unknown."""
    examples: list[Example]
    rejections: list[Rejection]
    checksums: dict[str, str]
    """Path of a picture -> its checksum. Empty if the catalogue lists audio: the images' names then
    contain content keys, so `key` needs no checksums."""

    def key(self, examples: list[Example]) -> str:
        """Return the content key of the given examples; the key does not depend on their splits."""
        undealt = [asdict(replace(example, split="")) for example in examples]
        contents = [self.checksums[e.path] for e in examples] if self.checksums else []
        return keys.content_key(undealt, contents, self.features and asdict(self.features))


def drawn_from(images_dir: Path) -> Path | None:
    """Find the catalogue that a folder of images was drawn from.

    Returns:
        `images_dir` if it contains a catalogue. Otherwise the folder of the newest of those
        catalogues of the same artifact folder that list all the images. None if `extract` did not
        draw the images, or if no catalogue of the artifact folder lists any of the images.

    Raises:
        InputError: catalogues of the artifact folder list some of the images, but no catalogue
            lists all of them.
    """
    if (images_dir / "catalogue.json").exists():  # written by create-image-features-from-audio
        return images_dir
    if not (images_dir / "features.json").exists():
        return None
    named = _catalogues_beside(images_dir)
    whole = [catalogue for catalogue, n_left_out in named if not n_left_out]
    if whole:
        logger.info("%s: extract drew these images from the catalogue %s", images_dir, whole[-1])
        return whole[-1]
    if named:
        raise InputError(
            f"{images_dir}: extract drew these images, but none of the {len(named)} catalogues in "
            "the artifact folder lists all of them; choose a catalogue: run split with --catalogue "
            "and --images"
        )
    logger.warning(
        "%s: extract drew these images, but the artifact folder has no catalogue that tells which "
        "images are of the same recording; run split with --catalogue and --images instead",
        images_dir,
    )
    return None


def _catalogues_beside(images_dir: Path) -> list[tuple[Path, int]]:
    """Find the catalogues of the artifact folder that list at least one image in `images_dir`.

    Returns:
        (catalogue folder, number of images missing from this catalogue) for each catalogue, the
        oldest scan first.
    """
    settings = read_features(images_dir)
    there = {path.relative_to(images_dir).as_posix() for path in images_dir.glob("*/*.png")}
    found = []
    for record in (images_dir.parent.parent / "catalogues").glob("*/catalogue.json"):
        with contextlib.suppress(InputError):  # a damaged catalogue is skipped
            catalogue = read_catalogue(record.parent)
            named = {image_path(track, settings) for track in catalogue.tracks}
            if not catalogue.has_pictures and named & there:
                found.append((catalogue.scanned_at, record.parent, len(there - named)))
    return [(folder, n_left_out) for _, folder, n_left_out in sorted(found)]


def find(catalogue_dir: Path, images_dir: Path | None, group_by: str) -> Found:
    """Find the images of a catalogue's tracks.

    Args:
        catalogue_dir: the folder that `scan` made.
        images_dir: the folder that `extract` made; None if the catalogue lists pictures.
        group_by: what a group is: track (one recording) or artist.

    Raises:
        InputError: a track has neither an image nor a rejection, or its picture has changed since
            the scan. Or the catalogue lists audio and `images_dir` is None, or the catalogue lists
            pictures and `images_dir` is not None.
    """
    catalogue = read_catalogue(catalogue_dir)
    folder, features = _find_images(catalogue_dir, catalogue, images_dir)
    examples, rejections = pair(catalogue, folder, features, group_by)
    listed = catalogue.tracks if catalogue.has_pictures else []
    for track in listed:
        check_contents(folder / track.path, check_unchanged(folder, track, catalogue.scanned_at))
    checksums = {track.path: track.checksum for track in listed}
    return Found(folder, features, examples, rejections, checksums)


def _find_images(
    catalogue_dir: Path, catalogue: Catalogue, images_dir: Path | None
) -> tuple[Path, FeatureConfig | None]:
    """Return the folder of a catalogue's images, and the drawing settings (None if unknown)."""
    if catalogue.has_pictures:
        if images_dir is not None:
            raise InputError(f"{catalogue_dir}: lists the pictures themselves; omit --images")
        is_known = (catalogue.folder / "features.json").exists()
        return catalogue.folder, read_features(catalogue.folder) if is_known else None
    if images_dir is None:
        raise InputError(
            f"{catalogue_dir}: lists audio; give --images, the address that extract printed"
        )
    return images_dir, read_features(images_dir)


def pair(
    catalogue: Catalogue, images_dir: Path, settings: FeatureConfig | None, group_by: str
) -> tuple[list[Example], list[Rejection]]:
    """Pair a catalogue's tracks with their images or rejections.

    Raises:
        InputError: a track has neither an image nor a rejection.
    """
    examples, missing = [], []
    rejections = list(catalogue.rejections)
    tracks = catalogue.tracks
    drawn_here = None if catalogue.has_pictures else settings
    for track, group in zip(tracks, group_tracks(tracks, group_by), strict=True):
        name = track.path if drawn_here is None else image_path(track, drawn_here)
        image = images_dir / name
        if image.exists():
            examples.append(Example(track.path, track.genre, group, name))
        elif (rejection := rejection_path(image)).exists():
            rejections.append(Rejection(track.path, rejection.read_text("utf-8").strip()))
        else:
            missing.append(track.path)
    if missing:
        remedy = "scan again" if catalogue.has_pictures else "run extract on all shards"
        raise InputError(
            f"{images_dir}: {len(missing)} of {len(tracks)} tracks have no image yet (the first: "
            f"{missing[0]}); {remedy}"
        )
    return examples, rejections


def group_tracks(tracks: list[Track], group_by: str) -> list[str]:
    """Name each track's group (recording or artist); tracks with equal contents share a group."""
    by_artist = group_by == "artist"
    groups = [(track.artist or track.group) if by_artist else track.group for track in tracks]
    if by_artist:  # keep a recording's clips together: their artists can differ or be missing
        groups = origins.join_groups(groups, [track.group for track in tracks])
    return origins.join_groups(groups, [track.checksum for track in tracks])
