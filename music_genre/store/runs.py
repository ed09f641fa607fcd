"""The run folder: the settings of a training (settings.json) and its outcome (training.json).

This module imports nothing heavy, so checking whether a run has finished does not load torch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from music_genre.config import FeatureConfig, TrainConfig
from music_genre.errors import InputError
from music_genre.store import addresses, keys, records


@dataclass(frozen=True)
class RunSettings:
    """The settings of a training; they never change after they are written to the run folder."""

    config: TrainConfig
    genres: list[str]
    features: FeatureConfig | None
    """How the images were drawn; None for pictures, which another program drew."""
    n_mels: int
    data_key: str
    split_key: str
    weights: str
    """Checksum of the weights file that training started from; empty for random weights."""
    recipe: int
    """RECIPE of training/loop.py when the run was started."""

    @property
    def key(self) -> str:
        """The run's content key."""
        return keys.content_key(asdict(self))


def claim(run: Path, settings: RunSettings, split_dir: Path) -> None:
    """Create a run folder for these settings, or check that it already belongs to them.

    Raises:
        InputError: the folder belongs to other settings; if it contains a settings.json, the
            message names the differences.
    """
    location = addresses.reference(split_dir, run)
    record = records.read_json(run / "settings.json")
    if record is not None:
        found, _ = _parse(run, record)
        _check_same(run, found, settings)
    elif (read_finished(run) or {}).get("key", settings.key) != settings.key:
        raise InputError(
            f"{run}: has no settings.json and was trained with other settings; choose another run "
            "folder"
        )
    written = {"key": settings.key, "split": location, **asdict(settings)}
    if record != written:
        records.write_json(run / "settings.json", written)


def _check_same(run: Path, found: RunSettings, asked: RunSettings) -> None:
    old, new = _flat(found), _flat(asked)
    differing = [
        f"{name} {_shown(old.get(name))}, not {_shown(new[name])}"
        for name in new
        if old.get(name) != new[name]
    ]
    if differing:
        raise InputError(
            f"{run}: was started with {'; '.join(differing)}; choose another run folder or delete "
            "this one"
        )


def _shown(value: Any) -> Any:
    return "none" if value in ("", None) else value


def _flat(settings: RunSettings) -> dict[str, Any]:
    record = asdict(settings)
    return {**record.pop("config"), **record}


def read_settings(run: Path) -> tuple[RunSettings, Path]:
    """Read a run's settings and the path of its split.

    Raises:
        InputError: the folder is not a run.
    """
    record = records.read_record(run / "settings.json", "give the address that train printed")
    return _parse(run, record)


def read_key(run: Path) -> str:
    """Read the content key that a run got at its start.

    Raises:
        InputError: the folder is not a run.
    """
    record = records.read_record(run / "settings.json", "give the address that train printed")
    return str(record["key"])


def _parse(run: Path, record: dict[str, Any]) -> tuple[RunSettings, Path]:
    try:
        settings = RunSettings(
            config=TrainConfig(**record["config"]),
            genres=record["genres"],
            features=FeatureConfig(**record["features"]) if record["features"] else None,
            n_mels=record["n_mels"],
            data_key=record["data_key"],
            split_key=record["split_key"],
            weights=record["weights"],
            recipe=record["recipe"],
        )
    except (KeyError, TypeError):
        raise InputError(
            f"{run / 'settings.json'}: not in the format of this version of music-genre; choose "
            "another run folder"
        ) from None
    return settings, addresses.resolve(record["split"], run)


def read_finished(run: Path) -> dict[str, Any] | None:
    """Read the outcome of a training; None if the training has not finished."""
    return records.read_json(run / "training.json")
