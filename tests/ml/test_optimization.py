"""One update step, the losses and the schedule, against formulas and torch."""

import pytest
import torch
from torch import nn

from music_genre.config import CRITERIA, OPTIMIZERS, TrainConfig
from music_genre.training import optimization
from music_genre.training.augmentation import Mixed


def test_one_update_equals_a_hand_written_nesterov_step() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()  # autocast leaves float64 alone
    crops, labels = torch.randn(4, 1, 2, 3).double(), torch.tensor([0, 1, 2, 1])
    config = TrainConfig(learning_rate=0.1, weight_decay=0.01, label_smoothing=0.0)
    optimizer = optimization.make_optimizer(network, config)
    criterion = optimization.make_criterion(config)
    weight, bias = (p.detach().clone() for p in network.parameters())
    momentum = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(3):
        optimization.add_gradients(network, criterion, crops, labels)
        optimizer.step()
        inputs = crops.flatten(1)
        error = (inputs @ weight.T + bias).softmax(dim=1)
        error[range(4), labels] -= 1
        gradients = [error.T @ inputs / 4 + 0.01 * weight, error.mean(dim=0)]
        for place, (value, gradient) in enumerate(zip((weight, bias), gradients, strict=True)):
            momentum[place] = 0.9 * momentum[place] + gradient
            value -= 0.1 * (gradient + 0.9 * momentum[place])
    torch.testing.assert_close(network[1].weight, weight)
    torch.testing.assert_close(network[1].bias, bias)


def test_focal_loss_equals_its_formula() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    p = logits.softmax(dim=1)[:, 0]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(optimization.focal_loss(logits, labels, 2.0), expected)
    torch.testing.assert_close(
        optimization.focal_loss(logits, labels, 0.0), nn.functional.cross_entropy(logits, labels)
    )


@pytest.mark.parametrize("n_steps", [1, 2, 10, 997])
def test_the_schedule_equals_torchs_one_cycle(n_steps: int) -> None:
    ours = [optimization.learning_rate(step, n_steps, 0.3) for step in range(n_steps)]
    assert max(ours) <= 0.3
    if n_steps < 10:
        return
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=n_steps)
    for step in range(n_steps):
        assert ours[step] == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        if step + 1 < n_steps:
            theirs.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_optimizer_lowers_every_loss(name: str, criterion: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    config = TrainConfig(optimizer=name, criterion=criterion, learning_rate=0.01)
    optimizer = optimization.make_optimizer(network, config)
    loss_of = optimization.make_criterion(config)
    crops = torch.randn(32, 1, 2, 3)
    labels = (crops.sum(dim=(1, 2, 3)) > 0).long()
    losses = []
    for _ in range(99):
        losses.append(float(optimization.add_gradients(network, loss_of, crops, labels)))
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert type(optimizer).__name__.lower() == name


def test_mixed_crops_have_the_loss_of_both_labels() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()  # autocast leaves float64 alone
    crops, labels = torch.randn(4, 1, 2, 3).double(), torch.tensor([0, 1, 2, 1])
    mixed = Mixed(0.3, torch.tensor([3, 2, 1, 0]))
    criterion = optimization.make_criterion(TrainConfig(label_smoothing=0.0))
    loss = optimization.add_gradients(network, criterion, crops, labels, mixed)
    soft = 0.3 * nn.functional.one_hot(labels, 3) + 0.7 * nn.functional.one_hot(labels.flip(0), 3)
    expected = nn.functional.cross_entropy(network(crops), soft).detach()
    torch.testing.assert_close(loss.double(), expected)


def test_the_average_follows_weights_and_statistics() -> None:
    assert optimization.make_average(nn.Linear(2, 2), 0.0) is None
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = optimization.make_average(network, 0.9)
    assert average is not None
    expected = {}
    for step in range(5):
        with torch.no_grad():
            for value in network.state_dict().values():
                value += 1
        average.update_parameters(network)
        for name, value in network.state_dict().items():
            before = expected.get(name, value)
            decayed = 0.9 * before + 0.1 * value if value.is_floating_point() else value
            expected[name] = (value if step == 0 else decayed).clone()
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name])
