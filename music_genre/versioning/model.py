"""Publish a trained model: its bytes with DVC, then its description and origin with Git."""

import hashlib
import logging
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from music_genre import __version__
from music_genre.errors import InputError
from music_genre.store import records, runs
from music_genre.versioning import storage
from music_genre.versioning.access import Access
from music_genre.versioning.clone import cloned

logger = logging.getLogger(__name__)

FOLDER: Final = "models"
TABLES: Final = "evaluation.tar"
"""The run's tables and charts in one archive: object stores are slow with many small files."""
AIRFLOW_RUN: Final = "Airflow-Run"
SHOWN: Final = ("accuracy", "accuracy_interval", "macro_f1", "n_tracks")


@dataclass(frozen=True)
class Published:
    """A finished and measured run, with the parts that are published."""

    run: Path
    settings: runs.RunSettings
    checkpoint: Path
    split: Path
    metrics: dict[str, Any]

    @property
    def name(self) -> str:
        """The published name: torchvision's name of the model, then the run's content key."""
        return f"{self.settings.config.model}-{self.settings.key}"


def publish_run(
    run: Path, store: Path, access: Access, *, airflow_run: str = "", data_version: str = ""
) -> dict[str, Any]:
    """Publish a run: upload its files and verify them, then push a commit and a tag to Git.

    Git comes last, so that no commit ever names bytes that the remote lacks. Every step can be
    repeated: after an interruption at any point, the same call completes the work.

    Args:
        run: the run folder that `train` made and `evaluate` measured.
        store: the artifact folder; clones and DVC's cache are below it.
        access: repository and remote.
        airflow_run: name of the Airflow run that made the model.
        data_version: version of the data, as printed by `pull`.

    Returns:
        The result: name, commit, tag, metrics; `reused` is true if nothing new was published.

    Raises:
        InputError: the run is not finished or not measured, or the repository or the remote
            refuses a request.
        TemporaryError: the repository or the remote cannot be reached.
    """
    published = read_run(run)
    with cloned(access, store) as clone, storage.opened(clone, store, access) as repo:
        storage.probe(repo, write=True)
        clone.rehearse()
        path = f"{FOLDER}/{published.name}"
        tracked = storage.add(repo, lay_out(published, clone.folder / path))
        storage.push(repo, tracked)
        storage.verify(repo, tracked)
        origin = {AIRFLOW_RUN: airflow_run, "Data-Version": data_version}
        is_new = clone.commit(path, message(published, origin))
        tag = clone.push(f"model/{published.name}") if is_new else ""
        commit = clone.last_change(path)
        if not tag and airflow_run and clone.trailer(commit, AIRFLOW_RUN) == airflow_run:
            # An earlier attempt pushed this tag, but was killed before it printed its result.
            tag = clone.tag_of(commit)
        where = {"repository": access.git, "remote": storage.address(repo)}
    if not tag:
        logger.info(
            "%s: already published with the same contents; nothing committed", published.name
        )
    which = {"model": published.name, "path": path, "commit": commit, "tag": tag}
    shown = {name: published.metrics[name] for name in SHOWN}
    return {**which, **where, **shown, "reused": not tag}


def read_run(run: Path) -> Published:
    """Read a run's settings and metrics, and find its checkpoint and split.

    Raises:
        InputError: a part of the run is missing; the message says which command to run.
    """
    settings, split = runs.read_settings(run)
    finished = runs.read_finished(run)
    if finished is None:
        raise InputError(f"{run}: its training has not finished; run train again to resume it")
    metrics = records.read_record(run / "evaluation" / "metrics.json", "run evaluate first")
    checkpoint = run / finished["checkpoint"]
    if not checkpoint.is_file():
        raise InputError(
            f"{run}: the last checkpoint {checkpoint.name} is missing; delete "
            f"{run / 'training.json'} and run train again; train resumes from an older checkpoint "
            "if there is one"
        )
    return Published(run, settings, checkpoint, split, metrics)


def lay_out(published: Published, folder: Path) -> list[Path]:
    """Write a model's folder: text files for Git, and large files for DVC.

    `predict --run` accepts this folder as a run folder once DVC has fetched the checkpoint.

    Returns:
        The files for DVC.
    """
    for old in folder.glob("*.dvc"):
        old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    run = published.run
    for text in (run / "settings.json", run / "training.json", run / "evaluation/metrics.json"):
        (folder / text.name).write_bytes(text.read_bytes())
    weights = folder / published.checkpoint.name
    storage.place(published.checkpoint, weights)
    tables = sorted(file for file in (run / "evaluation").iterdir() if file.is_file())
    split = [published.split / name for name in ("split.csv", "split.json", "rejected.csv")]
    found = [file for file in (run / "history.csv", *split, *tables) if file.is_file()]
    pack(found, folder / TABLES)
    return [weights, folder / TABLES]


def pack(files: list[Path], into: Path) -> None:
    """Pack files into a tar archive; the same files always give the same archive."""
    with tarfile.open(into, "w", format=tarfile.PAX_FORMAT) as tar:
        for file in files:
            info = tarfile.TarInfo(file.name)
            info.size = file.stat().st_size
            with file.open("rb") as contents:
                tar.addfile(info, contents)


def message(published: Published, origin: dict[str, str]) -> str:
    """Return the commit's message: the model's accuracy, then the model's origin as trailers."""
    metrics, settings = published.metrics, published.settings
    low, high = metrics["accuracy_interval"]
    accuracy = f"accuracy {metrics['accuracy']:.3f} ({low:.3f} to {high:.3f})"
    trailers = {
        "Data-Hash": settings.data_key,
        "Split-Hash": settings.split_key,
        "Code-Version": code_version(),
        **origin,
    }
    lines = [f"{name}: {' '.join(value.split())}" for name, value in trailers.items() if value]
    title = f"Model {published.name}: {accuracy} on {metrics['n_tracks']} tracks"
    return "\n".join([title, "", *lines])


def code_version() -> str:
    """Return this package's version with a hash of its source files."""
    folder = Path(__file__).resolve().parent.parent
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return f"{__version__}+{digest.hexdigest()}"
