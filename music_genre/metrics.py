"""Pure functions from labels and predictions to numbers."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def confusion_matrix(truth: Labels, predicted: Labels, n_genres: int) -> NDArray[np.int64]:
    """Count tracks: (n_genres, n_genres) int64, a row per true genre, a column per predicted."""
    flat = np.bincount(truth * n_genres + predicted, minlength=n_genres**2)
    return flat.reshape(n_genres, n_genres)


def accuracy(confusion: NDArray[np.int64]) -> float:
    """Share of tracks on the diagonal."""
    return float(np.trace(confusion) / confusion.sum())


def genre_scores(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Score each genre.

    Returns:
        (n_genres, 3) float64: precision, recall, F1; 0 where a genre was never predicted or
        never occurred.
    """
    hits = np.diag(confusion).astype(np.float64)
    predicted, occurred = confusion.sum(axis=0), confusion.sum(axis=1)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(occurred, 1)
    f1 = 2 * hits / np.maximum(predicted + occurred, 1)
    return np.stack([precision, recall, f1], axis=1)


def accuracy_interval(
    correct: NDArray[np.bool_], groups: list[str], n_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Bound the accuracy by a 95% percentile bootstrap over groups.

    Whole groups are drawn, because clips of one recording are right or wrong together.

    Args:
        correct: (n_tracks,) bool.
        groups: the group of each track.
        n_resamples: bootstrap samples.
        seed: of the draws.

    Returns:
        (low, high).

    Source: Efron & Tibshirani 1993; cluster bootstrap of Field & Welsh 2007.
    """
    _, member = np.unique(np.array(groups, dtype=object), return_inverse=True)
    n_tracks = np.bincount(member)
    n_correct = np.bincount(member, weights=correct)
    drawn = np.random.default_rng(seed).integers(len(n_tracks), size=(n_resamples, len(n_tracks)))
    shares = n_correct[drawn].sum(axis=1) / n_tracks[drawn].sum(axis=1)
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)
