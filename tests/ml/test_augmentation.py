"""Random crops and masks: what is drawn, and that it depends on the key alone."""

import numpy as np
import torch

from music_genre import augmentation, dataset

IMAGES = dataset.stack_images(
    [np.full((8, n), level, np.uint8) for n, level in ((100, 10), (30, 20), (5, 30))], [0, 1, 2]
)


def test_an_epoch_shows_a_track_as_often_as_crops_fit() -> None:
    order = augmentation.epoch_order(IMAGES, 10, augmentation.generator(0, 0))
    assert torch.bincount(order).tolist() == [10, 3, 1]
    assert len(order) == augmentation.crops_per_epoch(IMAGES, 10)


def test_draws_depend_on_the_key_alone() -> None:
    draw = lambda *key: augmentation.epoch_order(IMAGES, 10, augmentation.generator(*key)).tolist()  # noqa: E731
    first = draw(0, 3)
    torch.rand(5)
    assert draw(0, 3) == first
    assert draw(0, 4) != first
    assert draw(1, 3) != first
    assert augmentation.random_seed(1, 23) != augmentation.random_seed(12, 3)


def test_random_crops_reach_both_ends_of_a_track_and_stay_within() -> None:
    ramp = np.tile(np.arange(100, dtype=np.uint8), (8, 1))
    images = dataset.stack_images([ramp], [0])
    tracks = torch.zeros(2000, dtype=torch.long)
    crops = augmentation.random_crops(images, tracks, 90, augmentation.generator(0))
    starts = ((crops[:, 0, 0, 0] + 2) * 63.75).round().int()
    assert set(starts.tolist()) == set(range(11))
    assert torch.all(crops[:, :, :, 1:] > crops[:, :, :, :-1])  # none wraps


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
