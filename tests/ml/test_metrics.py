"""Metrics against numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from music_genre.evaluation import metrics

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
    # Half of the interval's width, by normal approximation: 1.96 * sqrt(0.7 * 0.3 / 100) = 0.09.
    assert high - low == pytest.approx(0.18, abs=0.02)
    assert (low, high) == metrics.accuracy_interval(correct, groups)


def test_the_interval_is_wider_where_groups_are_right_or_wrong_together() -> None:
    correct = np.arange(100) < 70
    alone = metrics.accuracy_interval(correct, [str(i) for i in range(100)])
    together = metrics.accuracy_interval(correct, [str(i // 10) for i in range(100)])
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


@pytest.mark.parametrize(
    ("share", "n", "expected"),
    # Newcombe, Statistics in Medicine 17, 1998, table I, method 3 (the score interval).
    [
        (81 / 263, 263, (0.2553, 0.3662)),
        (15 / 148, 148, (0.0624, 0.1605)),
        (0 / 20, 20, (0.0, 0.1611)),
        (1 / 29, 29, (0.0061, 0.1718)),
    ],
)
def test_wilsons_interval_is_the_published_one(
    share: float, n: int, expected: tuple[float, float]
) -> None:
    assert metrics.wilson_interval(share, n) == pytest.approx(expected, abs=5e-5)


def test_three_wrong_tracks_do_not_prove_that_all_are() -> None:
    groups = ["a", "b", "c"]
    low, high = metrics.accuracy_interval(np.zeros(3, bool), groups)
    assert low == 0
    assert high == pytest.approx(0.5615, abs=1e-4)
    assert metrics.accuracy_interval(np.ones(3, bool), groups) == pytest.approx((1 - high, 1))


def test_many_right_tracks_of_one_recording_are_one_observation() -> None:
    low, _ = metrics.accuracy_interval(np.ones(50, bool), ["a"] * 50)
    assert low == pytest.approx(metrics.wilson_interval(1.0, 1)[0])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=40))
def test_the_interval_holds_the_accuracy_and_wilsons(tracks: list[tuple[bool, int]]) -> None:
    correct = np.array([right for right, _ in tracks])
    groups = [str(group) for _, group in tracks]
    low, high = metrics.accuracy_interval(correct, groups, n_resamples=50)
    least, most = metrics.wilson_interval(float(correct.mean()), len(set(groups)))
    assert 0 <= low <= least <= correct.mean() + 1e-9
    assert correct.mean() - 1e-9 <= most <= high <= 1
