"""The settings of each stage; nothing heavy is imported here."""

import difflib
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from music_genre.errors import InputError

OPTIMIZERS: Final = {"sgd": 0.03, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 3e-4}
"""Optimizer -> the peak learning rate it gets where none is asked for."""

CRITERIA: Final = ("cross_entropy", "focal")
GROUPINGS: Final = ("track", "artist")
SPLITS: Final = ("train", "validation", "test")
DEVICES: Final = ("auto", "cpu", "cuda")
PICTURE_ROWS: Final = 128
"""Height that pictures from elsewhere are scaled to."""
DATA_MODES: Final = ("auto", "resident", "streamed")
MOST_SEED: Final = 2**63 - 1


@cache
def known_models() -> tuple[str, ...]:
    """The names of torchvision's classification models, known without loading torch."""
    return tuple(Path(__file__).with_name("torchvision_models.txt").read_text().split())


def check_model(name: str) -> None:
    """See that torchvision has a model of this name.

    Raises:
        InputError: it has none; near names are named.
    """
    if name not in known_models():
        near = ", ".join(difflib.get_close_matches(name, known_models(), n=4, cutoff=0.4))
        raise InputError(
            f"model {name}: torchvision has no such model; near names: {near or 'resnet18'}"
        )


def setting(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Define a field of settings; the command line makes an option of it."""
    about = {"help": text, "least": least, "most": most, "choices": choices}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class FeatureConfig:
    """How a waveform becomes an image."""

    sample_rate: int = 22_050
    """Hz, after mixing to mono."""
    n_fft: int = 2048
    """Window length in samples (93 ms)."""
    hop_length: int = 512
    """Samples from one frame to the next (23 ms): 43 frames a second."""
    n_mels: int = 128
    """Mel bands: the height of an image."""
    dynamic_range_db: float = 80.0
    """An image reaches from the track's maximum (white) to this far below it (black)."""


@dataclass(frozen=True)
class SplitConfig:
    """How groups are dealt to train, validation and test."""

    seed: int = setting(0, "Which groups go where.", least=0, most=MOST_SEED)
    group_by: str = setting(
        "track",
        "What must not span two splits: a recording (track) or an artist.",
        choices=GROUPINGS,
    )
    test: float = setting(0.25, "Share of each genre's groups to test on.", least=0, most=1)
    validation: float = setting(
        0.15, "Share of each genre's groups to validate on.", least=0, most=1
    )

    def __post_init__(self) -> None:
        if not (self.test > 0 and self.validation > 0 and self.test + self.validation < 1):
            raise InputError(
                f"test ({self.test}) and validation ({self.validation}) must be above 0 and "
                "leave something to train on; lower them so that their sum is below 1"
            )


@dataclass(frozen=True)
class TrainConfig:
    """What is trained and how; machine matters (device, threads) are not part of it."""

    model: str = setting("resnet18", "Any torchvision classification model.")
    optimizer: str = setting(
        "sgd", "sgd has Nesterov momentum; sdg means sgd.", choices=(*OPTIMIZERS, "sdg")
    )
    criterion: str = setting("cross_entropy", "The loss.", choices=CRITERIA)
    epochs: int = setting(
        30, "Passes over the tracks; each shows a track as often as crops fit into it.", least=1
    )
    learning_rate: float = setting(
        0.0,
        "Peak of the one-cycle schedule; 0 means "
        + ", ".join(f"{rate} for {name}" for name, rate in OPTIMIZERS.items())
        + ".",
        least=0,
    )
    batch_size: int = setting(32, "Crops in an update step.", least=1)
    crop_frames: int = setting(128, "Width of a crop; 43 frames are one second.", least=1)
    weight_decay: float = setting(5e-4, "Of weights, not of biases and norms.", least=0)
    label_smoothing: float = setting(0.1, "Of cross_entropy only.", least=0, most=1)
    focal_gamma: float = setting(2.0, "Of focal only.", least=0)
    frequency_mask: int = setting(16, "Most mel bands that SpecAugment hides in a crop.", least=0)
    time_mask: int = setting(16, "Most frames that SpecAugment hides in a crop.", least=0)
    mixup: float = setting(
        0.0, "Alpha of the Beta distribution of mixup's shares; 0 mixes nothing.", least=0
    )
    ema_decay: float = setting(
        0.0,
        "Average the weights of the steps by this decay, 0.99 say; 0 averages nothing.",
        least=0,
        most=1,
    )
    seed: int = setting(0, "Of all that is random.", least=0, most=MOST_SEED)

    def __post_init__(self) -> None:
        check_model(self.model)
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                option = name.replace("_", "-")
                raise InputError(f"--{option} {value}: not a finite number; give one")
        if self.optimizer == "sdg":  # as the first command lines of this program spelled it
            object.__setattr__(self, "optimizer", "sgd")
        if not self.learning_rate:
            object.__setattr__(self, "learning_rate", OPTIMIZERS[self.optimizer])


@dataclass(frozen=True)
class Machine:
    """What a training uses of this machine; none of it is part of what a run is.

    Devices round otherwise, so their weights differ in the last digits.
    """

    device: str = "auto"
    """auto, cpu or cuda."""
    data: str = "auto"
    """Images resident in memory, streamed from a file, or auto: streamed where they do not fit."""
    checkpoint_seconds: float = 20.0
    """Longest time between checkpoints; 0: each step."""
    gpu_locks: Path = Path("/var/tmp/music-genre-gpus")  # noqa: S108
    """Where GPUs' locks are, the same folder for all containers of a host."""


THIS_MACHINE: Final = Machine()
