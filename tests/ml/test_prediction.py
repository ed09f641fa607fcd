"""Predictions of a trained run, for files that are audio and for some that are not."""

import json
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, Prepared, Run, tone

from music_genre.config import FeatureConfig
from music_genre.evaluation import metrics, prediction
from music_genre.features import extraction as features
from music_genre.store.tables import read_table

ROOT = Path(__file__).parents[2]


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_predictions_equal_the_evaluation_to_the_last_digit(
    trained: Path, prepared: Prepared
) -> None:
    rows = read_table(trained / "evaluation" / "predictions.csv")
    files = [prepared.audio / row["path"] for row in rows]
    found = list(prediction.predict(trained, files, device_name="cpu"))
    assert [p.path for p in found] == [str(file) for file in files]
    for one, row in zip(found, rows, strict=True):
        assert isinstance(one, prediction.Prediction)
        assert one.genre == row["predicted"]
        assert one.probability == max(one.probabilities.values())
        assert one.probabilities == {
            genre: float(row[f"p_{genre}"]) for genre in ("bass", "lead", "noise")
        }


@pytest.mark.parametrize("seconds", [1.0, 1.7, 30.0])
def test_music_of_any_length_has_a_genre(trained: Path, tmp_path: Path, seconds: float) -> None:
    for genre in ("bass", "noise"):
        soundfile.write(tmp_path / f"{genre}.wav", tone(genre, 7, seconds), SAMPLE_RATE)
    found = prediction.predict(trained, [tmp_path], device_name="cpu")
    assert [p.genre for p in found] == ["bass", "noise"]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of good and bad files, some of them in subfolders."""
    folder = tmp_path / "mixed"
    (folder / "b" / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    wave = tone("bass", 1)
    for name in ("z.wav", "b/deep/good one.flac", "b/A.OGG", ".hidden/x.wav", "b/._A.wav"):
        soundfile.write(folder / name, wave, SAMPLE_RATE)
    (folder / "b" / "bad.mp3").write_text("no")
    (folder / "b" / "cover.jpg").write_text("no audio, and does not say so")
    (tmp_path / "empty").mkdir()
    return folder


def test_json_lines_hold_good_and_bad_files_in_order(trained: Path, mixed: Path, run: Run) -> None:
    gone, empty = mixed / "gone.wav", mixed.parent / "empty"
    outcome = run("predict", "--run", trained, "--json", gone, mixed, empty)
    found = lines(outcome.stdout)
    names = ["b/A.OGG", "b/bad.mp3", "b/deep/good one.flac", "z.wav"]
    assert [line["path"] for line in found] == [
        str(gone),
        *(str(mixed / n) for n in names),
        str(empty),
    ]
    good = {"path", "genre", "probability", "probabilities"}
    bad = {"path", "error"}
    assert [set(line) for line in found] == [bad, good, bad, good, good, bad]
    assert [line["error"] for line in found if "error" in line] == [
        "No such file or directory",
        "not audio: Format not recognised",
        "contains no audio files",
    ]
    assert outcome.code == 65
    assert outcome.error == (
        "error: 3 of 6 files could not be used; the line of each file gives the reason"
    )


def test_a_table_has_lines_for_good_files_and_reasons_beside_it(
    trained: Path, mixed: Path, run: Run
) -> None:
    outcome = run("predict", "--run", trained, mixed)
    rows = outcome.stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["bass"] * 3
    assert rows[1].endswith("% " + f" {mixed}/b/deep/good one.flac")
    assert f"{mixed}/b/bad.mp3: not audio" in outcome.stderr
    assert outcome.code == 65
    assert "1 of 4 files could not be used" in outcome.error
    assert run("predict", "--run", trained, mixed / "z.wav").code == 0


def test_names_that_are_no_utf_8_are_shown(trained: Path, tmp_path: Path, run: Run) -> None:
    good, bad = (tmp_path / os.fsdecode(name) for name in (b"caf\xe9.wav", b"b\xe9d.wav"))
    with good.open("wb") as file:
        soundfile.write(file, tone("lead", 3), SAMPLE_RATE, format="WAV")
    bad.write_text("no")
    shown = run("predict", "--run", trained, "--json", bad, good)
    assert [line["path"] for line in lines(shown.stdout)] == [str(bad), str(good)]
    table = run("predict", "--run", trained, bad, good)
    assert table.stdout.startswith("lead ")
    assert table.stdout.endswith("caf\ufffd.wav\n")
    assert "b\ufffdd.wav: not audio" in table.stderr


def test_each_line_is_printed_as_soon_as_it_is_known(trained: Path, tmp_path: Path) -> None:
    """The second file takes long, but the first file's line must not wait for it."""
    soundfile.write(tmp_path / "a.wav", tone("lead", 3), SAMPLE_RATE)
    write_silence(tmp_path / "b.wav", hours=1)
    command = ["-m", "music_genre", "predict", "--run", trained, "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, *command, tmp_path / "a.wav", tmp_path / "b.wav"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("lead ")
        assert select.select([process.stdout], [], [], 0.2)[0] == []
        assert process.wait() == 65


def write_silence(path: Path, hours: int) -> None:
    """Write a silent WAV file as a sparse file, which uses almost no disk space."""
    n_bytes = hours * 3600 * SAMPLE_RATE * 2
    with path.open("wb") as file:
        file.write(b"RIFF" + struct.pack("<I", 36 + n_bytes) + b"WAVEfmt ")
        file.write(struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16))
        file.write(b"data" + struct.pack("<I", n_bytes))
        file.truncate(44 + n_bytes)


def test_what_cannot_be_opened_holds_nothing_up(trained: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "good.wav", tone("lead", 3), SAMPLE_RATE)
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "far.wav").symlink_to("x" * 300)
    found = prediction.predict(trained, [tmp_path, tmp_path / ("y" * 300)], device_name="cpu")
    shown = [getattr(each, "error", None) or each.genre for each in found]
    assert shown == ["File name too long", "lead", "not a regular file", "File name too long"]


def test_a_reader_that_leaves_ends_it_quietly(trained: Path, prepared: Prepared) -> None:
    files = " ".join(map(str, sorted(prepared.audio.rglob("*.wav"))))
    program = f"{sys.executable} -m music_genre predict --run {trained} {files} | head -n 1"
    outcome = subprocess.run(
        ["bash", "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(outcome.stdout.splitlines()) == 1
    assert "roken pipe" not in outcome.stderr


def test_what_is_known_first_waits_for_its_turn(
    trained: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(prepared.audio.rglob("*.wav"))[:6]
    usual = features.image_of

    def slow(path: Path, config: FeatureConfig) -> np.ndarray:
        time.sleep(0.3 if path in files[::3] else 0)
        return usual(path, config)

    monkeypatch.setattr(features, "image_of", slow)
    found = prediction.predict(trained, files, device_name="cpu")
    assert [one.path for one in found] == [str(file) for file in files]


def test_a_decoder_that_crashes_costs_one_file(
    trained: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(prepared.audio.rglob("*.wav"))[:4]
    usual = features.image_of

    def crash(path: Path, config: FeatureConfig) -> np.ndarray:
        return os._exit(3) if path == files[1] else usual(path, config)

    monkeypatch.setattr(features, "image_of", crash)
    first, crashed, *others = prediction.predict(trained, files, device_name="cpu")
    assert crashed == prediction.Unusable(str(files[1]), "its decoder exited (exit code 3)")
    assert {type(one) for one in (first, *others)} == {prediction.Prediction}


def test_the_likeliest_genre_is_that_of_the_digits_before_rounding() -> None:
    row = np.array([0.3333331, 0.3333333, 0.3333334], np.float32)
    genre, shares = metrics.name_genre(row, ["a", "b", "c"])
    assert genre == "c"
    assert shares == {"a": 0.333333, "b": 0.333333, "c": 0.333333}
