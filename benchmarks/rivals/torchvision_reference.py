"""Train as torchvision's reference script does: ImageFolder, DataLoader, its presets, its loop.

Source: references/classification of pytorch/vision (train.py, presets.py), with the learning rate
scaled by the batch size, as its README says. Prints one JSON line: images per second and accuracy
by track.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATE_OF_BATCH_256 = 0.1


def preset(crop_size: tuple[int, int], *, train: bool) -> v2.Compose:
    """Build the transform of ClassificationPresetTrain or ClassificationPresetEval."""
    cut = (
        [v2.RandomResizedCrop(crop_size, antialias=True), v2.RandomHorizontalFlip(0.5)]
        if train
        else [v2.Resize(crop_size, antialias=True), v2.CenterCrop(crop_size)]
    )
    to_float = [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True)]
    return v2.Compose(
        [*cut, *to_float, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD), v2.ToPureTensor()]
    )


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]],
    device: torch.device,
) -> float:
    """Train for an epoch; returns images a second."""
    model.train()
    began, n_images = time.monotonic(), 0
    for images, targets in loader:
        images, targets = images.to(device), targets.to(device)
        loss = criterion(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # read the loss at each step, as the reference script's logger does
        n_images += len(images)
    return n_images / (time.monotonic() - began)


def track_accuracy(
    model: nn.Module, data: ImageFolder, batch_size: int, workers: int, device: torch.device
) -> float:
    """Average the probabilities of each track's images; returns the accuracy by track."""
    model.eval()
    parts = []
    with torch.inference_mode():
        for images, _ in DataLoader(data, batch_size, num_workers=workers):
            parts.append(model(images.to(device)).softmax(dim=1).cpu())
    tracks = defaultdict(list)
    for (path, target), row in zip(data.samples, torch.cat(parts), strict=True):
        tracks[Path(path).name.rpartition("-")[0], target].append(row)
    right = [int(torch.stack(rows).mean(0).argmax()) == t for (_, t), rows in tracks.items()]
    return float(statistics.mean(right))


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data-path", type=Path, required=True, help="folder that contains train/ and test/"
    )
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--crop-size", type=int, nargs=2, default=(128, 128))
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(given.device)
    train = ImageFolder(given.data_path / "train", preset(tuple(given.crop_size), train=True))
    test = ImageFolder(given.data_path / "test", preset(tuple(given.crop_size), train=False))
    loader = DataLoader(
        train,
        given.batch_size,
        shuffle=True,
        num_workers=given.workers,
        pin_memory=device.type == "cuda",
    )
    model = torchvision.models.get_model(given.model, weights=None, num_classes=len(train.classes))
    model.to(device)
    criterion = nn.CrossEntropyLoss()
    rate = RATE_OF_BATCH_256 * given.batch_size / 256
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    speeds = []
    for _ in range(given.epochs):
        speeds.append(train_one_epoch(model, criterion, optimizer, loader, device))
        scheduler.step()
    accuracy = track_accuracy(model, test, given.batch_size, given.workers, device)
    result = {"images_per_second": statistics.median(speeds), "accuracy": accuracy}
    print(json.dumps({**result, "n_images": len(train)}))


if __name__ == "__main__":
    main()
