"""Random crops and masks: which values are drawn, and that they depend only on the key."""

import torch

from music_genre.training import augmentation

LENGTHS = torch.tensor([100, 30, 5])


def test_an_epoch_shows_a_track_as_often_as_crops_fit() -> None:
    order = augmentation.epoch_order(LENGTHS, 10, augmentation.generator(0, 0))
    assert torch.bincount(order).tolist() == [10, 3, 1]
    assert len(order) == augmentation.crops_per_epoch(LENGTHS, 10)


def test_draws_depend_on_the_key_alone() -> None:
    draw = lambda *key: augmentation.epoch_order(LENGTHS, 10, augmentation.generator(*key)).tolist()  # noqa: E731
    first = draw(0, 3)
    torch.rand(5)
    assert draw(0, 3) == first
    assert draw(0, 4) != first
    assert draw(1, 3) != first
    assert augmentation.random_seed(1, 23) != augmentation.random_seed(12, 3)


def test_random_starts_reach_both_ends_of_a_track_and_stay_within() -> None:
    lengths = torch.tensor([100, 90, 30]).repeat(2000)
    starts = augmentation.random_starts(lengths, 90, augmentation.generator(0))
    assert set(starts[::3].tolist()) == set(range(11))
    assert set(starts[1::3].tolist()) == set(starts[2::3].tolist()) == {0}


def test_mixup_mixes_crops_and_says_how() -> None:
    crops = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    shares = []
    for step in range(200):
        mixed_crops, mixed = augmentation.mix(crops, 0.4, 0, 1, step)
        assert mixed is not None
        assert sorted(mixed.partners.tolist()) == list(range(50))
        expected = mixed.share * crops + (1 - mixed.share) * crops[mixed.partners]
        torch.testing.assert_close(mixed_crops, expected)
        shares.append(mixed.share)
    shares_of_beta = torch.distributions.Beta(0.4, 0.4)
    assert abs(torch.tensor(shares).mean() - 0.5) < 0.1
    assert abs(torch.tensor(shares).std() - shares_of_beta.stddev) < 0.05
    again, _ = augmentation.mix(crops, 0.4, 0, 1, 199)
    assert torch.equal(again, mixed_crops)


def test_no_mixup_leaves_crops_as_they_are() -> None:
    crops = torch.randn(4, 1, 20, 30)
    same, mixed = augmentation.mix(crops, 0.0, 0, 1, 2)
    assert same is crops
    assert mixed is None


def test_a_mask_hides_one_stretch_of_at_most_its_width() -> None:
    crops = torch.randn(500, 1, 20, 30, generator=torch.Generator().manual_seed(0))
    for axis in (2, 3):
        masked = augmentation.mask(crops, axis, 6, augmentation.generator(1, axis))
        changed = (masked != crops).flatten(1, 1).any(dim=5 - axis).squeeze(1)
        widths = changed.sum(dim=1)
        assert set(widths.tolist()) == set(range(7))
        edges = (changed.int().diff(dim=1) == 1).sum(dim=1) + changed[:, 0].int()
        assert edges.max() == 1
        mean = crops.mean(dim=(1, 2, 3), keepdim=True).expand_as(crops)
        assert torch.equal(masked[masked != crops], mean[masked != crops])


def test_no_mask_leaves_crops_as_they_are() -> None:
    crops = torch.randn(4, 1, 20, 30)
    assert torch.equal(augmentation.mask(crops, 2, 0, augmentation.generator(0)), crops)
