"""Options that several commands share, and options made from a stage's settings."""

from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click

from music_genre.config import DATA_MODES, DEVICES, Machine
from music_genre.store import addresses

Command = Callable[..., Any]


def taking(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Combine several options into one decorator; --help lists them in the given order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def address(text: str) -> Path:
    """Turn an address into a local path."""
    if not text:  # for example, a shell variable is unset; Path("") would mean "."
        raise click.BadParameter("is empty; give a path (the previous task may have no result).")
    return addresses.local_path(text)


def shard(text: str) -> tuple[int, int]:
    """Parse i/n, which means part i of n equal parts."""
    part, _, whole = text.partition("/")
    if not (part.isdecimal() and whole.isdecimal() and 1 <= int(part) <= int(whole)):
        raise click.BadParameter(f"{text!r} is not a valid part; write 2/4 for part 2 of 4.")
    return int(part), int(whole)


def settings_of(
    config: type[Any], *, without: tuple[str, ...] = ()
) -> Callable[[Command], Command]:
    """Return a decorator that adds an option for each field of a settings class."""

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


artifacts_option = click.option(
    "--artifacts",
    "store",
    type=address,
    default="artifacts",
    show_default=True,
    envvar="MUSIC_GENRE_ARTIFACTS",
    show_envvar=True,
    help="Folder in which all stages store their outputs, named by content hash.",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Number of processes.  [default: one per usable core]",
)
device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Device to compute on; auto uses a GPU if there is one.",
)
gpu_locks_option = click.option(
    "--gpu-locks",
    type=address,
    default=Machine.gpu_locks,
    show_default=True,
    envvar="MUSIC_GENRE_GPU_LOCKS",
    show_envvar=True,
    help="Folder of the GPU locks; all containers of a host must share it.",
)
machine_options = taking(
    device_option,
    click.option(
        "--data",
        type=click.Choice(DATA_MODES),
        default="auto",
        show_default=True,
        help="Where training keeps the images: in memory (resident) or in a file (streamed); auto "
        "streams them if they do not fit into memory.",
    ),
    click.option(
        "--checkpoint-seconds",
        type=click.FloatRange(min=0),
        default=Machine.checkpoint_seconds,
        show_default=True,
        envvar="MUSIC_GENRE_CHECKPOINT_SECONDS",
        show_envvar=True,
        help="Longest time between checkpoints in seconds; 0 saves a checkpoint after every step.",
    ),
    gpu_locks_option,
)
weights_option = click.option(
    "--weights",
    type=address,
    metavar="FILE",
    help="Initial weights: a state dict or a run's checkpoint.  [default: random weights]",
)


def take_machine(settings: dict[str, Any]) -> Machine:
    """Take the machine's settings out of a command's settings, and return them as `Machine`."""
    return Machine(**{field.name: settings.pop(field.name) for field in fields(Machine)})
