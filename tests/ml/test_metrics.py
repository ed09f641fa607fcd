"""Metrics against numbers worked out by hand."""

import numpy as np
import pytest

from music_genre import metrics

TRUTH = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 1])
CONFUSION = np.array([[2, 1, 0], [1, 1, 0], [0, 1, 0]])


def test_confusion_matrix_has_a_row_per_true_genre() -> None:
    assert np.array_equal(metrics.confusion_matrix(TRUTH, PREDICTED, 3), CONFUSION)


def test_scores() -> None:
    assert metrics.accuracy(CONFUSION) == pytest.approx(3 / 6)
    expected = [[2 / 3, 2 / 3, 2 / 3], [1 / 3, 1 / 2, 2 / 5], [0, 0, 0]]
    np.testing.assert_allclose(metrics.genre_scores(CONFUSION), expected)


def test_the_interval_holds_the_accuracy_and_repeats() -> None:
    correct = np.arange(100) % 10 < 7
    groups = [str(i) for i in range(100)]
    low, high = metrics.accuracy_interval(correct, groups)
    assert low < 0.7 < high
    # Normal approximation: 1.96 * sqrt(0.7 * 0.3 / 100) = 0.09.
    assert high - low == pytest.approx(0.18, abs=0.02)
    assert (low, high) == metrics.accuracy_interval(correct, groups)


def test_the_interval_is_wider_where_groups_are_right_or_wrong_together() -> None:
    correct = np.arange(100) < 70
    alone = metrics.accuracy_interval(correct, [str(i) for i in range(100)])
    together = metrics.accuracy_interval(correct, [str(i // 10) for i in range(100)])
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])
