"""The settings of each stage; this module imports no slow library such as torch."""

import difflib
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from music_genre.errors import InputError

OPTIMIZERS: Final = {"sgd": 0.03, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 3e-4}
"""Optimizer -> its default peak learning rate."""

CRITERIA: Final = ("cross_entropy", "focal")
GROUPINGS: Final = ("track", "artist")
SPLITS: Final = ("train", "validation", "test")
DEVICES: Final = ("auto", "cpu", "cuda")
PICTURE_ROWS: Final = 128
"""Height in pixels to which images drawn by other programs are scaled."""
DATA_MODES: Final = ("auto", "resident", "streamed")
MOST_SEED: Final = 2**63 - 1


@cache
def known_models() -> tuple[str, ...]:
    """Return the names of torchvision's classification models without importing torch."""
    return tuple(Path(__file__).with_name("torchvision_models.txt").read_text().split())


def check_model(name: str) -> None:
    """Check that torchvision has a model of this name.

    Raises:
        InputError: torchvision has no such model; the message lists similar names.
    """
    if name not in known_models():
        near = ", ".join(difflib.get_close_matches(name, known_models(), n=4, cutoff=0.4))
        raise InputError(
            f"model {name}: torchvision has no such model; similar names: {near or 'resnet18'}"
        )


def setting(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Define a field of a settings class; the command line makes an option from the field."""
    about = {"help": text, "least": least, "most": most, "choices": choices}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class FeatureConfig:
    """How a waveform becomes an image."""

    sample_rate: int = 22_050
    """Sample rate, in Hz, to which the audio is resampled after mixing to mono."""
    n_fft: int = 2048
    """Window length in samples (93 ms)."""
    hop_length: int = 512
    """Samples from one frame to the next (23 ms): 43 frames a second."""
    n_mels: int = 128
    """Mel bands: the height of an image."""
    dynamic_range_db: float = 80.0
    """Pixel levels range from the track's maximum (white) to this many dB below it (black)."""


@dataclass(frozen=True)
class SplitConfig:
    """How groups are assigned to train, validation and test."""

    seed: int = setting(
        0, "Seed that decides which groups go to which split.", least=0, most=MOST_SEED
    )
    group_by: str = setting(
        "track",
        "Keep the tracks of each recording (track) or of each artist in one split.",
        choices=GROUPINGS,
    )
    test: float = setting(0.25, "Share of each genre's groups to test on.", least=0, most=1)
    validation: float = setting(
        0.15, "Share of each genre's groups to validate on.", least=0, most=1
    )

    def __post_init__(self) -> None:
        if not (self.test > 0 and self.validation > 0 and self.test + self.validation < 1):
            raise InputError(
                f"test ({self.test}) and validation ({self.validation}) must be above 0, and their "
                "sum must be below 1; choose other shares"
            )


@dataclass(frozen=True)
class TrainConfig:
    """The model and how it is trained; the machine's settings are in `Machine`."""

    model: str = setting("resnet18", "Any torchvision classification model.")
    optimizer: str = setting(
        "sgd",
        "sgd uses Nesterov momentum; sdg is an old misspelling of sgd.",
        choices=(*OPTIMIZERS, "sdg"),
    )
    criterion: str = setting("cross_entropy", "Loss function.", choices=CRITERIA)
    epochs: int = setting(
        30,
        "Passes over the training tracks. In each epoch a track yields as many random crops as fit "
        "into it, at least one.",
        least=1,
    )
    learning_rate: float = setting(
        0.0,
        "Peak learning rate of the one-cycle schedule; 0 means "
        + ", ".join(f"{rate} for {name}" for name, rate in OPTIMIZERS.items())
        + ".",
        least=0,
    )
    batch_size: int = setting(32, "Crops per update step.", least=1)
    crop_frames: int = setting(128, "Width of a crop in frames; 43 frames are one second.", least=1)
    weight_decay: float = setting(
        5e-4, "Weight decay; not applied to biases and normalisation parameters.", least=0
    )
    label_smoothing: float = setting(
        0.1, "Label smoothing; used only by cross_entropy.", least=0, most=1
    )
    focal_gamma: float = setting(2.0, "Gamma of the focal loss; used only by focal.", least=0)
    frequency_mask: int = setting(
        16, "Maximum number of mel bands that SpecAugment masks in a crop.", least=0
    )
    time_mask: int = setting(
        16, "Maximum number of frames that SpecAugment masks in a crop.", least=0
    )
    mixup: float = setting(0.0, "Alpha of mixup's Beta distribution; 0 disables mixup.", least=0)
    ema_decay: float = setting(
        0.0,
        "Decay of the exponential moving average of the weights, for example 0.99; 0 disables it.",
        least=0,
        most=1,
    )
    seed: int = setting(
        0,
        "Seed of everything random: initial weights, crops and their order, augmentation, dropout.",
        least=0,
        most=MOST_SEED,
    )

    def __post_init__(self) -> None:
        check_model(self.model)
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                option = name.replace("_", "-")
                raise InputError(f"--{option} {value}: not a finite number; give a finite number")
        if self.optimizer == "sdg":  # old command lines contain this misspelling
            object.__setattr__(self, "optimizer", "sgd")
        if not self.learning_rate:
            object.__setattr__(self, "learning_rate", OPTIMIZERS[self.optimizer])


@dataclass(frozen=True)
class Machine:
    """How training uses this machine; these settings do not change a run's content key.

    The weights nevertheless differ in their last digits between devices, because devices round
    differently.
    """

    device: str = "auto"
    """auto, cpu or cuda."""
    data: str = "auto"
    """Where training keeps the images: resident means in memory, streamed means in a file.

    auto streams the images if they do not fit into memory.
    """
    checkpoint_seconds: float = 20.0
    """Longest time between two checkpoints; 0 saves a checkpoint after every step."""
    gpu_locks: Path = Path("/var/tmp/music-genre-gpus")  # noqa: S108
    """Folder of the GPU locks; all containers of a host must share it."""


THIS_MACHINE: Final = Machine()
