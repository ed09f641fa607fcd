"""A full disk: extract reports it in one line, keeps its images, and continues after a clean-up."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Prepared, write_music
from PIL import Image

from music_genre.audio import catalogue as audio

# Runs in a mount namespace of its own. Extracts to a disk that is too small, lists the files,
# enlarges the disk, and extracts again.
SCRIPT = """
set -eu
mount -t tmpfs -o size=$SIZE tmpfs "$DISK"
set +e
"$PYTHON" -m music_genre extract --catalogue "$CATALOGUE" --artifacts "$DISK" --workers 2
echo "first: $?"
find "$DISK" -type f -printf '%s %f\\n' | sed 's/^/file: /'
mount -o remount,size=64m "$DISK"
"$PYTHON" -m music_genre extract --catalogue "$CATALOGUE" --artifacts "$DISK" --workers 2
echo "second: $?"
cp -r "$DISK/." "$COPY"
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def may_mount(folder: Path) -> bool:
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", folder]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def extract_on_a_small_disk(catalogue: Path, folder: Path, size: str) -> str:
    """Run SCRIPT; returns its whole output."""
    (folder / "disk").mkdir()
    if not may_mount(folder / "disk"):
        pytest.skip("this machine does not allow mounting a small disk")
    names = {"SIZE": size, "DISK": folder / "disk", "COPY": folder / "copy"}
    names |= {"CATALOGUE": catalogue, "PYTHON": sys.executable}
    (folder / "copy").mkdir()
    return subprocess.run(
        [*NAMESPACE, "sh", "-c", SCRIPT],
        env={**os.environ, **{name: str(value) for name, value in names.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("size", ["8k", "24k", "64k", "100k"])
def test_a_full_disk_ends_the_batch_and_spoils_nothing(
    prepared: Prepared, tmp_path: Path, size: str
) -> None:
    printed = extract_on_a_small_disk(prepared.catalogue, tmp_path, size)
    first, second = printed.split("first: ")
    assert second.startswith("75\n"), printed
    assert re.fullmatch(r"error: \S+/disk/\S+: No space left on device\n", first), printed
    files = re.findall(r"^file: (\d+) (.+)$", second, re.M)
    assert not [name for _, name in files if name.startswith(".tmp-")]
    whole = {path.stat().st_size for path in prepared.images.rglob("*.png")}
    assert {int(n_bytes) for n_bytes, name in files if name.endswith(".png")} <= whole
    assert "second: 0\n" in second
    images = sorted((tmp_path / "copy").rglob("*.png"))
    assert len(images) == 15
    for path in images:
        with Image.open(path) as image:
            image.load()


def test_a_long_track_that_does_not_fit_leaves_no_trace(tmp_path: Path) -> None:
    """The track is first written to an unnamed file, which is larger than the final image."""
    music = write_music(tmp_path / "music", n_tracks=1, seconds=400)
    catalogue = Path(audio.scan(music, tmp_path / "store")["catalogue"])
    printed = extract_on_a_small_disk(catalogue, tmp_path, "4m")
    first, second = printed.split("first: ")
    assert second.startswith("75\n"), printed
    assert re.fullmatch(r"error: \S+/disk/\S+\.png: No space left on device\n", first), printed
    assert re.findall(r"^file: \d+ (.+)$", second, re.M) == ["features.json"]
    assert len(list((tmp_path / "copy").rglob("*.png"))) == 3
