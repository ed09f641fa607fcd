"""The run folder: what is trained (settings.json) and how far it is (checkpoint.pt)."""

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from music_genre import artifacts
from music_genre.config import FeatureConfig, TrainConfig
from music_genre.errors import InputError


@dataclass(frozen=True)
class RunSettings:
    """What a run folder trains; it never changes once written."""

    config: TrainConfig
    genres: list[str]
    features: FeatureConfig | None
    """None where it trains on pictures that this package did not draw."""
    n_mels: int
    split_key: str
    recipe: int
    """RECIPE of the training module."""

    @property
    def key(self) -> str:
        """The run's content key."""
        return artifacts.content_key(asdict(self))


def claim(run: Path, settings: RunSettings, split_dir: Path) -> None:
    """Make a run folder for these settings, or find that it is theirs already.

    Raises:
        InputError: the folder belongs to other settings; names what differs.
    """
    location = artifacts.reference(split_dir, run)
    record = artifacts.read_json(run / "settings.json")
    if record is not None:
        found, _ = _parse(run, record)
        _check_same(run, found, settings)
    written = {"key": settings.key, "split": location, **asdict(settings)}
    if record != written:
        artifacts.write_json(run / "settings.json", written)


def _check_same(run: Path, found: RunSettings, asked: RunSettings) -> None:
    old, new = _flat(found), _flat(asked)
    differing = [
        f"{name} {old.get(name)}, not {new.get(name)}" for name in new if old.get(name) != new[name]
    ]
    if differing:
        raise InputError(
            f"{run}: was begun with {'; '.join(differing)}; choose another run folder or delete it"
        )


def _flat(settings: RunSettings) -> dict[str, Any]:
    record = asdict(settings)
    return {**record.pop("config"), **record}


def read_settings(run: Path) -> tuple[RunSettings, Path]:
    """Read a run's settings and where its split is.

    Raises:
        InputError: the folder is no run.
    """
    record = artifacts.read_record(run / "settings.json", "give the address that train printed")
    return _parse(run, record)


def _parse(run: Path, record: dict[str, Any]) -> tuple[RunSettings, Path]:
    try:
        settings = RunSettings(
            config=TrainConfig(**record["config"]),
            genres=record["genres"],
            features=FeatureConfig(**record["features"]) if record["features"] else None,
            n_mels=record["n_mels"],
            split_key=record["split_key"],
            recipe=record["recipe"],
        )
    except (KeyError, TypeError):
        raise InputError(
            f"{run / 'settings.json'}: not as this version writes it; choose another run folder"
        ) from None
    return settings, artifacts.resolve(record["split"], run)


def save(run: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; a crash at any moment leaves the old one or the new one."""
    with artifacts.atomic_write(run / "checkpoint.pt") as file:
        torch.save(state, file)


def load(run: Path, device: torch.device) -> dict[str, Any] | None:
    """Read the checkpoint; None where there is none yet.

    Raises:
        InputError: it is damaged.
    """
    path = run / "checkpoint.pt"
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        return None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = (str(error) or "it is empty").splitlines()[0]
        raise InputError(f"{path}: damaged ({reason}); delete it to train from the start") from None
    return state


def load_weights(run: Path, device: torch.device) -> dict[str, Any]:
    """Read a finished run's weights.

    Raises:
        InputError: the run has not finished.
    """
    state = load(run, device) if (run / "training.json").exists() else None
    if state is None:
        raise InputError(f"{run}: its training has not finished; run train again to resume it")
    weights: dict[str, Any] = state["weights"]
    return weights
