"""Charts of trainings and evaluations, with any names of genres."""

from pathlib import Path

import numpy as np
from PIL import Image

from music_genre.evaluation import report


def test_genre_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    genres = ["$x_1", "a_very_long_genre_name", "rock 'n' roll"]
    report.draw_confusion(tmp_path / "x.png", np.eye(3, dtype=np.int64) * 5, genres, "title")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.format == "PNG"


def test_an_unoccupied_row_is_no_division_by_zero(tmp_path: Path) -> None:
    report.draw_confusion(tmp_path / "x.png", np.zeros((2, 2), np.int64), ["a", "b"], "")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_one_epoch_makes_a_picture(tmp_path: Path) -> None:
    row = {"epoch": "1", "train_loss": "2", "validation_loss": "2", "validation_accuracy": "0.1"}
    report.draw_curves(tmp_path / "x.png", [row])
    assert (tmp_path / "x.png").stat().st_size > 1000
