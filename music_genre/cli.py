"""The command line: one command per stage, its result as one JSON line, errors as one line.

Stages are imported inside their commands, so that help answers without loading torch.
"""

import errno
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from types import FrameType
from typing import Any

import click

from music_genre import __version__, artifacts
from music_genre.config import (
    CRITERIA,
    DEVICES,
    SPLITS,
    FeatureConfig,
    Progress,
    SplitConfig,
    TrainConfig,
)
from music_genre.errors import InputError, MusicGenreError, StoppedError, TemporaryError

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
"""How often a stage says how far it is where no terminal shows a bar."""

LASTING = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR),
    *(errno.EISDIR, errno.EEXIST, errno.EROFS, errno.ENAMETOOLONG),
}
"""Faults of storage that only the user can mend; others, such as a full disk, may pass."""

Command = Callable[..., Any]


class Commands(click.Group):
    """Lists commands in the order of the data flow and turns errors into one line and a code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names as they were defined."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; the only place where errors become exit codes."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            path = (error.ctx or ctx).command_path
            _fail(ctx, error.exit_code, f"{error.format_message()} See: {path} --help")
        except MusicGenreError as error:
            _fail(ctx, error.exit_code, str(error))
        except OSError as error:
            _fail(ctx, _code(error), f"{error.filename or 'storage'}: {error.strerror or error}")


def _code(error: OSError) -> int:
    return (InputError if error.errno in LASTING else TemporaryError).exit_code


def _fail(ctx: click.Context, code: int, message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    ctx.exit(code)


def _stop(number: int, _frame: FrameType | None) -> None:
    """End at once: an exception would be lost in a library that is just being imported.

    All writes are atomic, so there is nothing to undo. Training collects signals instead.
    """
    name = signal.Signals(number).name
    line = f"error: stopped by {name}; run the same command again to go on\n"
    # Leave the bar's line, and show the cursor that it hid.
    os.write(2, (f"\n{line}\x1b[?25h" if sys.stderr.isatty() else line).encode())
    os._exit(StoppedError.exit_code)


@click.group(
    cls=Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        # Underscores may stand for the hyphens of options, as in the program's first commands.
        "token_normalize_func": lambda token: (
            token if token in CRITERIA else token.replace("_", "-")
        ),
    },
)
@click.version_option(__version__)
def commands() -> None:
    """Train music-genre classifiers: audio folders to images to a trained, evaluated model.

    Every command prints its result as one JSON line on standard output and finds work that
    was done before. Exit codes: 0 done, 1 fix your input, 2 usage, 75 try again.
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("music_genre").setLevel(logging.INFO)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    # Threads of torch that spin while they wait halve its speed where other programs use the
    # cores, and gain nothing where they do not (measured). Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@commands.result_callback()
def _print_result(result: dict[str, Any] | None) -> None:
    if result is not None:
        click.echo(json.dumps(result))


@contextmanager
def _progress(label: str, every: float = SECONDS_BETWEEN_LINES) -> Iterator[Progress]:
    """Show how far a stage is: a bar on a terminal, else a line now and then, or for each note."""
    if not sys.stderr.isatty():
        yield _lines(label, every)
        return
    with click.progressbar(
        length=0, label=label, file=sys.stderr, item_show_func=lambda note: note or ""
    ) as bar:
        shown = ""

        def show(done: int, total: int, note: str = "", /) -> None:
            nonlocal shown
            shown = note or shown
            bar.length = total
            bar.update(done - bar.pos, shown)

        yield show


def _lines(label: str, every: float) -> Progress:
    last = time.monotonic()

    def show(done: int, total: int, note: str = "", /) -> None:
        nonlocal last
        if note:
            logger.info(note)
        elif time.monotonic() - last >= every:
            last = time.monotonic()
            logger.info("%s: %d of %d", label, done, total)

    return show


def address(text: str) -> Path:
    """Turn an address into a local path."""
    return artifacts.local_path(text)


def shard(text: str) -> tuple[int, int]:
    """Read one of n equal parts, written i/n."""
    part, _, whole = text.partition("/")
    if not (part.isdecimal() and whole.isdecimal() and 1 <= int(part) <= int(whole)):
        raise click.BadParameter(f"{text!r} is no part of a whole; write 2/4 for part 2 of 4.")
    return int(part), int(whole)


def _settings(config: type[Any], *, without: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Make an option of every field of a stage's settings."""

    def decorate(command: Command) -> Command:
        for field in reversed(fields(config)):
            if field.name not in without:
                command = click.option(
                    f"--{field.name.replace('_', '-')}",
                    type=_kind(field),
                    default=field.default,
                    show_default=True,
                    help=field.metadata["help"],
                )(command)
        return command

    return decorate


def _kind(field: Field[Any]) -> click.ParamType[Any]:
    about = field.metadata
    if about["choices"]:
        return click.Choice(about["choices"])
    ranges: dict[type[Any], Any] = {int: click.IntRange, float: click.FloatRange}
    made = ranges.get(type(field.default))
    return made(about["least"], about["most"]) if made else click.STRING


def _train_config(settings: dict[str, Any]) -> TrainConfig:
    if settings["optimizer"] == "sdg":
        logger.info("--optimizer sdg is taken to mean sgd")
    return TrainConfig(**settings)


artifacts_option = click.option(
    "--artifacts",
    "store",
    type=address,
    default="artifacts",
    show_default=True,
    envvar="MUSIC_GENRE_ARTIFACTS",
    show_envvar=True,
    help="Where every stage keeps its outputs, by content.",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes.  [default: as many as cores may be used]",
)
device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Where to compute; auto takes a GPU if there is one.",
)
checkpoint_option = click.option(
    "--checkpoint-seconds",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    help="Longest time between checkpoints; 0: each step.",
)


@commands.command()
@click.option("--audio", type=address, required=True, help="Folder that holds the genre folders.")
@artifacts_option
def scan(audio: Path, store: Path) -> dict[str, Any]:
    """Catalogue a folder of audio."""
    from music_genre.audio import scan

    with _progress("scan") as progress:
        return scan(audio, store, progress=progress)


@commands.command()
@click.option("--catalogue", type=address, required=True, help="What scan printed.")
@artifacts_option
@click.option(
    "--shard",
    "part",
    metavar="I/N",
    type=shard,
    default="1/1",
    help="Only this part of the tracks.",
)
@workers_option
def extract(
    catalogue: Path, store: Path, part: tuple[int, int], workers: int | None
) -> dict[str, Any]:
    """Draw the mel spectrograms still missing."""
    from music_genre.features import extract

    with _progress("extract") as progress:
        return extract(
            catalogue, store, FeatureConfig(), shard=part, n_workers=workers, progress=progress
        )


@commands.command()
@click.option("--catalogue", type=address, required=True, help="What scan printed.")
@click.option("--images", type=address, required=True, help="What extract printed.")
@artifacts_option
@_settings(SplitConfig)
def split(catalogue: Path, images: Path, store: Path, **settings: Any) -> dict[str, Any]:
    """Deal groups to train, validation, test."""
    from music_genre.dataset import split

    return split(catalogue, images, store, SplitConfig(**settings))


@commands.command()
@click.option("--split", "split_dir", type=address, required=True, help="What split printed.")
@artifacts_option
@click.option("--run", type=address, help="Run folder.  [default: one by content, in artifacts]")
@_settings(TrainConfig)
@device_option
@checkpoint_option
def train(
    split_dir: Path,
    store: Path,
    run: Path | None,
    device: str,
    checkpoint_seconds: float,
    **settings: Any,
) -> dict[str, Any]:
    """Train a model, or go on where a run ended."""
    config = _train_config(settings)
    from music_genre.training import train

    with _progress("train", every=float("inf")) as progress:
        return train(
            split_dir,
            store,
            config,
            into=run,
            device_name=device,
            checkpoint_seconds=checkpoint_seconds,
            progress=progress,
        )


@commands.command()
@click.option("--run", type=address, required=True, help="What train printed.")
@click.option(
    "--split-name",
    type=click.Choice(SPLITS),
    default="test",
    show_default=True,
    help="What to measure on.",
)
@device_option
def evaluate(run: Path, split_name: str, device: str) -> dict[str, Any]:
    """Measure a trained model on a split."""
    from music_genre.evaluation import evaluate

    return evaluate(run, split_name=split_name, device_name=device)


@commands.command()
@click.option("--run", type=address, required=True, help="What train printed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines with all probabilities.")
@device_option
@click.argument("paths", nargs=-1, required=True, type=address)
def predict(run: Path, as_json: bool, device: str, paths: tuple[Path, ...]) -> None:
    """Name the genre of audio files."""
    from music_genre.evaluation import predict

    n_errors = n_predictions = 0

    def report(path: Path, reason: str) -> None:
        nonlocal n_errors
        n_errors += 1
        click.echo(f"{click.format_filename(path)}: {reason}", err=True)

    for prediction in predict(run, list(paths), device_name=device, on_error=report):
        n_predictions += 1
        if as_json:
            click.echo(json.dumps(vars(prediction)))
        else:
            path = click.format_filename(prediction.path)
            click.echo(f"{prediction.genre:<20} {prediction.probability:6.1%}  {path}")
    if not n_predictions:
        raise InputError(f"none of {n_errors} files could be read; give readable audio files")


@commands.command("create-image-features-from-audio")
@click.option(
    "--path_with_audios_dir",
    "audio",
    type=address,
    required=True,
    help="Folder that holds the genre folders.",
)
@click.option(
    "--path_to_image", "images", type=address, required=True, help="Folder for the images."
)
@workers_option
def create_image_features_from_audio(
    audio: Path, images: Path, workers: int | None
) -> dict[str, Any]:
    """Scan and extract into one folder."""
    from music_genre.audio import scan
    from music_genre.features import extract

    with _progress("scan") as progress:
        scanned = scan(audio, images, into=images, progress=progress)
    with _progress("extract") as progress:
        extracted = extract(
            images, images, FeatureConfig(), into=images, n_workers=workers, progress=progress
        )
    n_rejected = scanned["n_rejected"] + extracted["n_rejected"]
    reused = scanned["reused"] and extracted["reused"]
    return {**scanned, **extracted, "n_rejected": n_rejected, "reused": reused}


@commands.command("train-using-image-features")
@click.option(
    "--images_path", "images", type=address, required=True, help="Folder of pictures by genre."
)
@click.option(
    "--checkpoints_path", "run", type=address, required=True, help="Run folder, made if missing."
)
@_settings(SplitConfig, without=("seed",))
@_settings(TrainConfig)
@device_option
@checkpoint_option
@click.pass_context
def train_using_image_features(
    context: click.Context, /, images: Path, run: Path, **settings: Any
) -> dict[str, Any]:
    """Split, train and evaluate on a folder of pictures."""
    from music_genre.dataset import split
    from music_genre.evaluation import evaluate

    shares = {name: settings.pop(name) for name in ("group_by", "test", "validation")}
    catalogue = images if (images / "catalogue.json").exists() else None
    dealt = split(catalogue, images, run, SplitConfig(seed=settings["seed"], **shares))
    trained = context.invoke(train, split_dir=Path(dealt["split"]), store=run, run=run, **settings)
    measured = evaluate(run, device_name=settings["device"])
    reused = dealt["reused"] and trained["reused"] and measured["reused"]
    return {**trained, **measured, "split": dealt["split"], "reused": reused}
