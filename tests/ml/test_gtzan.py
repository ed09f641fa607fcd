"""Fetching GTZAN: broken downloads resume, archives are checked, all files stay in the folder."""

import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome, Run

from music_genre.dataset import download
from tests.fakes.file_server import serving

TRACKS = {
    "genres/blues/blues.00000.wav": b"one",
    "genres/blues/blues.00041.wav": b"two",
    "genres/jazz/jazz.00054.wav": b"",
    "genres/pop/pop.00015.wav": b"three",
}
ODD = {
    "genres/../../outside/outside.00000.wav": b"x",
    "genres/blues/../../blues.00001.wav": b"x",
    "genres/bextract_single.mf": b"x",
    "genres/blues/blues.00041.wav.bak": b"x",
    "genres/blues/blues.00041.wav/x": b"x",
    "/etc/genres/blues/passwd": b"x",
    "images_original/blues/blues00000.png": b"x",
}


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, contents in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            archive.addfile(info, io.BytesIO(contents))
        link = tarfile.TarInfo("genres/blues/blues.00002.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return out.getvalue()


def fetch(run: Run, source: str | Path, into: Path, *words: str) -> Outcome:
    return run("fetch", "gtzan", "--from", source, "--into", into, *words)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "genres.tar.gz"
    path.write_bytes(tar({**TRACKS, **ODD}))
    return path


def assert_fetched(into: Path) -> None:
    folder = into / "genres_original"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {name.removeprefix("genres/") for name in TRACKS}
    assert (folder / "blues" / "blues.00041.wav").read_bytes() == b"two"


def test_an_archive_that_is_there(
    run: Run, archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done = fetch(run, archive, tmp_path / "music")
    assert done.code == 0, done.stderr
    assert_fetched(tmp_path / "music")
    assert done.result["n_tracks"] == 4
    assert "4 tracks in 3 genres, but GTZAN has 1000 tracks in 10 genres" in caplog.text
    assert "jazz.00054.wav is damaged in many copies" in caplog.text
    assert not (tmp_path.parent / "outside").exists()
    assert fetch(run, archive, tmp_path / "music").result["reused"] is True


def test_the_faulty_are_counted_by_the_published_list(
    run: Run, archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fetch(run, archive, tmp_path).result["n_faulty"] == 1  # pop.00015
    assert "1 of the tracks are repetitions" in caplog.text
    assert "split --assigned-by gtzan-fault-filtered" in caplog.text


def test_kaggles_zip(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for name, contents in {**TRACKS, **ODD}.items():
            zipped.writestr("Data/" + name.replace("genres/", "genres_original/", 1), contents)
    assert fetch(run, path, tmp_path / "music").code == 0
    assert_fetched(tmp_path / "music")


def test_a_cut_download_goes_on_where_it_ended(run: Run, archive: Path, tmp_path: Path) -> None:
    contents = archive.read_bytes()
    checksum = hashlib.sha256(contents).hexdigest()
    with serving(contents) as (address, plan):
        plan.cuts, plan.statuses = [100, 50], [503]
        source = f"{address}/genres.tar.gz"
        done = fetch(run, source, tmp_path / "music", "--checksum", checksum)
    assert done.code == 0, done.stderr
    assert plan.starts == [0, 100, 150]
    assert_fetched(tmp_path / "music")


def test_a_server_that_goes_away_leaves_a_part_that_the_next_call_completes(
    run: Run, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    with serving(archive.read_bytes()) as (address, plan):
        plan.cuts = [100, 0, 0, 0, 0, 0, 0]
        failed = fetch(run, f"{address}/genres.tar.gz", tmp_path / "music")
        assert failed.code == 75
        assert "100 bytes are kept" in failed.error
        plan.cuts, plan.starts = [], []
        assert fetch(run, f"{address}/genres.tar.gz", tmp_path / "music").code == 0
        assert plan.starts == [100]
    assert_fetched(tmp_path / "music")


def test_a_server_that_knows_no_ranges_sends_all_again(
    run: Run, archive: Path, tmp_path: Path
) -> None:
    with serving(archive.read_bytes()) as (address, plan):
        plan.cuts, plan.knows_ranges = [100], False
        assert fetch(run, f"{address}/genres.tar.gz", tmp_path / "music").code == 0
    assert_fetched(tmp_path / "music")


def test_a_part_that_is_whole_is_not_asked_for_again(
    run: Run, archive: Path, tmp_path: Path
) -> None:
    into = tmp_path / "music"
    into.mkdir()
    (into / "genres.tar.gz.part").write_bytes(archive.read_bytes())
    with serving(archive.read_bytes()) as (address, _):
        assert fetch(run, f"{address}/genres.tar.gz", into).code == 0
    assert_fetched(into)


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("/no/such/archive.tar.gz", 65, "no such file"),
        ("http://127.0.0.1:1/x.tar.gz", 75, "Connection refused"),
        ("ftp://host/x.tar.gz", 65, "not the address of a file"),
        ("http:///", 65, "not the address of a file"),
    ],
)
def test_a_wrong_source_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, code: int, words: str
) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    failed = fetch(run, source, tmp_path)
    assert failed.code == code
    assert words in failed.error


def test_a_file_that_the_server_does_not_have(run: Run, tmp_path: Path) -> None:
    with serving(b"") as (address, plan):
        plan.statuses = [404]
        failed = fetch(run, f"{address}/x.tar.gz", tmp_path)
    assert failed.code == 65
    assert "answers 404" in failed.error


def test_another_archive_than_the_checksum_tells_is_refused_and_fetched_again(
    run: Run, archive: Path, tmp_path: Path
) -> None:
    right = hashlib.sha256(archive.read_bytes()).hexdigest()
    into = tmp_path / "music"
    with serving(b"something else") as (address, plan):
        source = f"{address}/genres.tar.gz"
        failed = fetch(run, source, into, "--checksum", right)
        assert failed.code == 65
        assert f"not {right}; the archive was deleted" in failed.error
        plan.contents = archive.read_bytes()
        assert fetch(run, source, into, "--checksum", right).code == 0


def test_a_damaged_archive_leaves_nothing(run: Run, archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-40])
    into = tmp_path / "music"
    into.mkdir()
    failed = fetch(run, archive, into)
    assert failed.code == 65
    assert "not a complete archive" in failed.error
    assert list(into.iterdir()) == []


def test_any_damage_of_an_archive_is_found_and_it_is_fetched_again(
    run: Run, archive: Path, tmp_path: Path
) -> None:
    """Without a given checksum, the archive's own checksums find the damage."""
    whole = archive.read_bytes()
    random = np.random.default_rng(0)
    for number, place in enumerate(random.integers(10, len(whole), 40)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        archive.write_bytes(damaged)
        failed = fetch(run, archive, tmp_path / str(number))
        assert failed.code == 65, place
        assert "not a complete archive" in failed.error, place
    with serving(bytes(damaged)) as (address, plan):
        source = f"{address}/anew.tar.gz"
        assert fetch(run, source, tmp_path / "anew").code == 65
        plan.contents = whole
        assert fetch(run, source, tmp_path / "anew").code == 0
    assert_fetched(tmp_path / "anew")


def test_an_encrypted_or_damaged_zip_is_one_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("genres/blues/blues.00000.wav", bytes(1000) + os.urandom(1000))
    whole = path.read_bytes()
    flag = whole.index(b"PK\x01\x02") + 8
    for place in (flag, 60, 300):
        spoilt = bytearray(whole)
        spoilt[place] ^= 0x01 if place == flag else 0xFF
        path.write_bytes(spoilt)
        failed = fetch(run, path, tmp_path / str(place))
        assert failed.code == 65, failed.stderr
        assert "not a complete archive" in failed.error


def test_an_archive_of_something_else_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(tar(ODD))
    failed = fetch(run, path, tmp_path)
    assert failed.code == 65
    assert "give an archive of GTZAN" in failed.error
