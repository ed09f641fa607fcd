"""Draw the charts of an evaluation."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from music_genre.store import files


def draw_confusion(path: Path, confusion: NDArray[np.int64], genres: list[str], title: str) -> None:
    """Draw a confusion matrix as a PNG file.

    Each cell shows how many tracks have its true genre and its predicted genre. The darker a cell,
    the larger the share of these tracks among all tracks of the true genre.
    """
    size = 2.5 + 0.55 * len(genres)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*confusion.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour)
    ticks = range(len(genres))
    axes.set_xticks(ticks, genres, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(ticks, genres, parse_math=False)
    axes.set(xlabel="predicted genre", ylabel="true genre", title=title)
    _save(figure, path)


def draw_curves(path: Path, history: list[dict[str, str]]) -> None:
    """Draw a training's losses and validation accuracy, epoch by epoch, as a PNG file."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    epochs = [int(row["epoch"]) for row in history]
    for name in ("train_loss", "validation_loss"):
        losses.plot(epochs, [float(row[name]) for row in history], label=name.replace("_", " "))
    losses.set(xlabel="epoch", ylabel="loss")
    losses.legend()
    accuracy.plot(epochs, [float(row["validation_accuracy"]) for row in history])
    accuracy.set(xlabel="epoch", ylabel="validation accuracy", ylim=(0, 1))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with files.atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
