"""Scanning and decoding: what is catalogued, what is rejected and why."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, Run, contents, tone, write_music

from music_genre.audio import catalogue as audio
from music_genre.audio import inspection
from music_genre.errors import InputError
from music_genre.store import keys
from music_genre.store.tables import read_table


def scan(folder: Path, store: Path) -> tuple[dict[str, inspection.Track], dict[str, str]]:
    found = audio.read_catalogue(Path(audio.scan(folder, store)["catalogue"]))
    return {t.path: t for t in found.tracks}, {r.path: r.reason for r in found.rejections}


def test_a_catalogue_names_every_track_once(music: Path, tmp_path: Path) -> None:
    tracks, rejections = scan(music, tmp_path / "store")
    assert len(tracks) == 15
    assert not rejections
    assert tracks["bass/bass.00002.wav"].genre == "bass"
    assert tracks["bass/bass.00002.wav"].seconds == 2.0


@pytest.mark.parametrize(
    "name",
    [
        "jazz.00054.wav",
        "a b.wav",
        'it\'s "q".wav',
        "naïve 音楽.wav",
        "new\nline.wav",
        "re\rturn.wav",
        "UPPER.WAV",
    ],
)
def test_any_name_is_catalogued_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "in" / "a genre.x").mkdir(parents=True)
    soundfile.write(tmp_path / "in" / "a genre.x" / name, tone("bass", 1), SAMPLE_RATE)
    tracks, _ = scan(tmp_path / "in", tmp_path / "store")
    assert list(tracks) == [f"a genre.x/{name}"]


def test_bytes_outside_of_the_folder_are_not_even_read(
    music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link can lead to a file that has no end."""
    (music / "bass" / "endless.wav").symlink_to("/dev/zero")
    read = []
    checksum = keys.file_checksum
    monkeypatch.setattr(keys, "file_checksum", lambda path: read.append(path) or checksum(path))
    outside = inspection.Task(inspection.AUDIO, music, "bass/endless.wav", None)
    assert inspection.read_contents(outside) == inspection.Contents()
    assert not read


def test_names_that_are_no_utf8_are_kept(music: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.wav")
    (music / "bass" / "bass.00000.wav").rename(music / "bass" / odd)
    tracks, _ = scan(music, tmp_path / "store")
    assert f"bass/{odd}" in tracks


def write_truncated(path: Path) -> None:
    soundfile.write(path, tone("bass", 1, 10), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[:100_001])


BAD = {
    "empty.wav": (lambda p: p.write_bytes(b""), "empty"),
    "text.wav": (lambda p: p.write_text("not audio " * 100), "not audio"),
    "header.wav": (lambda p: soundfile.write(p, np.zeros(0), SAMPLE_RATE), "0 frames"),
    "short.wav": (lambda p: soundfile.write(p, np.ones(99), SAMPLE_RATE), "too short"),
    "truncated.wav": (write_truncated, "the header announces 441000 bytes"),
    "folder.wav": (lambda p: p.mkdir(), "a folder"),
    "pipe.wav": (os.mkfifo, "not a regular file"),
    "readme.txt": (lambda p: p.write_text("hello"), "its suffix is not accepted for audio"),
    "link.wav": (lambda p: p.symlink_to("/etc/passwd"), "points outside"),
    "circle.wav": (lambda p: p.symlink_to(p), "symbolic links"),
    "gone.wav": (lambda p: p.symlink_to(p.with_name("nothing")), "No such file"),
    "long.wav": (lambda p: p.symlink_to("x" * 300), "File name too long"),
    "device.wav": (lambda p: p.symlink_to("/dev/zero"), "points outside"),
}


def test_bad_files_are_rejected_with_their_reason(music: Path, tmp_path: Path) -> None:
    for name, (write, _) in BAD.items():
        write(music / "bass" / name)
    tracks, rejections = scan(music, tmp_path / "store")
    assert len(tracks) == 15
    assert rejections.keys() == {f"bass/{name}" for name in BAD}
    for name, (_, reason) in BAD.items():
        assert reason in rejections[f"bass/{name}"]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("elsewhere/a.wav,r1", "lists 1 files, but none of them"),
        ("a/one.wav", "lacks a path or a track_id"),
    ],
)
def test_a_tracks_csv_that_says_nothing_of_the_files_is_refused(
    tmp_path: Path, row: str, found: str
) -> None:
    """Otherwise a split by recording would silently become a split by file."""
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "one.wav", np.ones(30_000, np.int16), 22_050)
    (tmp_path / "tracks.csv").write_text(f"path,track_id\n{row}\n")
    with pytest.raises(InputError, match=found):
        audio.scan(tmp_path, tmp_path / "store")


@pytest.mark.parametrize("beside", [True, False])
def test_tracks_csv_tells_recordings_and_artists(tmp_path: Path, beside: bool) -> None:
    music = write_music(tmp_path / "Data" / "genres")
    table = (music.parent if beside else music) / "tracks.csv"
    prefix = "genres/" if beside else ""
    table.write_text(
        f"path,genre,track_id,artist\n{prefix}bass/bass.00000.wav,bass,song,Ann\n"
        f"{prefix}bass/bass.00001.wav,bass,song,Ann\n"
    )
    tracks, _ = scan(music, tmp_path / "store")
    assert tracks["bass/bass.00000.wav"].group == tracks["bass/bass.00001.wav"].group == "song"
    assert tracks["bass/bass.00000.wav"].artist == "Ann"
    assert tracks["bass/bass.00002.wav"].group == "bass/bass.00002.wav"


def test_tags_tell_recordings_where_no_table_does(music: Path, tmp_path: Path) -> None:
    for number in range(2):
        with soundfile.SoundFile(music / "bass" / f"{number}.flac", "w", SAMPLE_RATE, 1) as file:
            file.artist, file.title = "Ann", "Song"
            file.write(tone("bass", number))
    tracks, _ = scan(music, tmp_path / "store")
    assert tracks["bass/0.flac"].group == tracks["bass/1.flac"].group == "Ann /  / Song"
    assert tracks["bass/0.flac"].artist == "Ann"


def test_a_second_scan_does_nothing(music: Path, tmp_path: Path) -> None:
    first = audio.scan(music, tmp_path / "store")
    before = contents(tmp_path / "store")
    assert audio.scan(music, tmp_path / "store") == {**first, "reused": True}
    assert contents(tmp_path / "store") == before


def test_the_address_follows_the_contents_not_the_place(music: Path, tmp_path: Path) -> None:
    first = audio.scan(music, tmp_path / "store")
    moved = music.rename(tmp_path / "moved")
    second = audio.scan(moved, tmp_path / "store")
    assert second["catalogue"] == first["catalogue"]
    assert audio.read_catalogue(Path(second["catalogue"])).folder == moved
    (moved / "bass" / "bass.00000.wav").unlink()
    assert audio.scan(moved, tmp_path / "store")["catalogue"] != first["catalogue"]


def test_files_laid_out_otherwise_are_refused_with_the_remedy(music: Path, tmp_path: Path) -> None:
    nested = tmp_path / "Data"
    nested.mkdir()
    music.rename(nested / "genres_original")
    with pytest.raises(InputError, match=r"give .*Data/genres_original"):
        audio.scan(nested, tmp_path / "store")
    with pytest.raises(InputError, match="has no subfolder with files"):
        audio.scan(nested / "genres_original" / "bass", tmp_path / "store")
    with pytest.raises(InputError, match="no such folder"):
        audio.scan(tmp_path / "nowhere", tmp_path / "store")


def test_a_folder_without_one_good_file_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in" / "bass").mkdir(parents=True)
    (tmp_path / "in" / "bass" / "x.wav").write_bytes(b"")
    outcome = run("scan", "--audio", tmp_path / "in", "--artifacts", tmp_path / "store")
    assert outcome.code == 65
    assert "none of the 1 files can be used" in outcome.error


def test_rejected_csv_holds_path_and_reason(music: Path, tmp_path: Path) -> None:
    (music / "bass" / "empty.wav").write_bytes(b"")
    folder = Path(audio.scan(music, tmp_path / "store")["catalogue"])
    assert read_table(folder / "rejected.csv") == [
        {"path": "bass/empty.wav", "reason": "empty: 0 bytes"}
    ]
