"""Parts of an update step: learning rate, optimizer, loss, averaged weights, gradients."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from music_genre.config import TrainConfig
from music_genre.model.network import autocast
from music_genre.training.augmentation import Mixed

WARM_UP = 0.3
"""Share of all steps during which the learning rate rises."""
MOMENTUM = 0.9

Criterion = Callable[[Tensor, Tensor], Tensor]


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """Return the one-cycle rate: it rises from peak/25 to peak, then falls to almost 0.

    The rise and the fall each follow half a cosine wave. No rate depends on an earlier rate, so
    checkpoints need not contain the schedule.

    Source: Smith & Topin 2017, with the shape of torch.optim.lr_scheduler.OneCycleLR.
    """
    top = max(1.0, WARM_UP * n_steps - 1)
    if step <= top:
        return _half_cosine(peak / 25, peak, step / top)
    return _half_cosine(peak, peak / 25e4, (step - top) / max(1.0, n_steps - 1 - top))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Make the configured optimizer; biases and normalisation parameters get no weight decay."""
    groups = [
        {
            "params": [p for p in network.parameters() if (p.ndim > 1) == decayed],
            "weight_decay": config.weight_decay * decayed,
        }
        for decayed in (True, False)
    ]
    rate = config.learning_rate
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, momentum=MOMENTUM)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate)
    return torch.optim.AdamW(groups, lr=rate)


def make_criterion(config: TrainConfig) -> Criterion:
    """Make the configured loss: (batch, n_genres) logits and (batch,) labels -> mean loss."""
    if config.criterion == "focal":
        return lambda logits, labels: focal_loss(logits, labels, config.focal_gamma)
    return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)


def focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Weight cross-entropy by (1 - p)^gamma, where p is the true genre's probability.

    Args:
        logits: (batch, n_genres) float32.
        labels: (batch,) int64.
        gamma: the exponent; 0 gives plain cross-entropy.

    Returns:
        The mean over the batch, a scalar.

    Source: Lin et al. 2017.
    """
    entropy = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-entropy)) ** gamma * entropy).mean()


def make_average(network: nn.Module, decay: float) -> AveragedModel | None:
    """Make the moving average of a model's weights and buffers; None if the decay is 0.

    Source: Polyak & Juditsky 1992; here the average is an exponential moving average.
    """
    if not decay:
        return None
    return AveragedModel(
        network,
        multi_avg_fn=get_ema_multi_avg_fn(decay),  # type: ignore[no-untyped-call]
        use_buffers=True,
    )


def add_gradients(
    network: nn.Module,
    criterion: Criterion,
    crops: Tensor,
    labels: Tensor,
    mixed: Mixed | None = None,
) -> Tensor:
    """Compute a batch's loss and its gradients; the weights do not change.

    Args:
        network: maps (batch, 1, n_mels, crop_frames) to (batch, n_genres) logits. It is put in
            train mode, and its gradients are replaced.
        criterion: mean loss of logits and labels.
        crops: the batch, after mixing.
        labels: (batch,) int64.
        mixed: how the crops of the batch were mixed; None if they were not mixed.

    Returns:
        The loss, a scalar, detached from the graph.
    """
    network.train()
    with autocast(crops.device, network, crops.shape[-1]):
        logits = network(crops)
    logits = logits.float()
    loss = criterion(logits, labels)
    if mixed is not None:
        other = criterion(logits, labels[mixed.partners])
        loss = mixed.share * loss + (1 - mixed.share) * other
    network.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    return loss.detach()
