"""Pure functions that compute measures from labels and predictions."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
DIGITS: Final = 6
"""Decimal places of the probabilities in all outputs."""


def confusion_matrix(truth: Labels, predicted: Labels, n_genres: int) -> NDArray[np.int64]:
    """Count the tracks for each pair of true and predicted genre.

    Returns:
        (n_genres, n_genres) int64: one row per true genre, one column per predicted genre.
    """
    flat = np.bincount(truth * n_genres + predicted, minlength=n_genres**2)
    return flat.reshape(n_genres, n_genres)


def accuracy(confusion: NDArray[np.int64]) -> float:
    """Return the share of correctly predicted tracks, which are counted on the diagonal."""
    return float(np.trace(confusion) / confusion.sum())


def genre_scores(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Score each genre.

    Returns:
        (n_genres, 3) float64: precision, recall, F1. Precision is 0 for a genre that was never
        predicted. Recall is 0 for a genre that no track has. F1 is 0 in both cases.
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
    """Return the accuracy's 95% interval: percentile bootstrap over groups, widened to Wilson's.

    The bootstrap draws whole groups, because clips of one recording are right or wrong together.
    The bootstrap interval is too narrow if there are few groups. Its width is 0 if all predictions
    are right, or all are wrong. So the bootstrap interval is widened to contain Wilson's interval,
    which counts each group as one observation.

    Args:
        correct: (n_tracks,) bool: whether the predicted genre is right.
        groups: the group of each track.
        n_resamples: number of bootstrap samples.
        seed: seed of the draws.

    Returns:
        (low, high), the smallest interval that contains both intervals.

    Source: Efron & Tibshirani 1993; cluster bootstrap of Field & Welsh 2007.
    """
    _, member = np.unique(np.array(groups, dtype=object), return_inverse=True)
    n_tracks = np.bincount(member)
    n_correct = np.bincount(member, weights=correct)
    drawn = np.random.default_rng(seed).integers(len(n_tracks), size=(n_resamples, len(n_tracks)))
    shares = n_correct[drawn].sum(axis=1) / n_tracks[drawn].sum(axis=1)
    low, high = np.quantile(shares, [0.025, 0.975])
    least, most = wilson_interval(float(np.mean(correct)), len(n_tracks))
    return min(float(low), least), max(float(high), most)


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95% interval for a share that was found in n independent observations.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA
    22, 1927; recommended for small n by Brown, Cai & DasGupta, Statistical Science 16, 2001.
    """
    z2 = 1.959964**2  # square of the normal distribution's 0.975 quantile
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def name_genre(row: NDArray[np.float32], genres: list[str]) -> tuple[str, dict[str, float]]:
    """Return the most probable genre, and each genre's probability, rounded for output."""
    shares = dict(zip(genres, (round(float(share), DIGITS) for share in row), strict=True))
    return genres[int(row.argmax())], shares
