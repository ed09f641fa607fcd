"""Find a file's DAGs by importing it in a separate process, because an import runs code."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from airflow import settings
from airflow.configuration import conf
from airflow.utils.file import list_py_file_paths

from fleet.bundles.changes import Answer
from fleet.bundles.snapshots import Snapshots, Tree, written

SECONDS = 35.0
"""Time limit for importing one file; a little longer than Airflow's own limit of 30 s."""
ROUND_SECONDS = 12.0
"""After this many seconds a round imports no further file; the next round continues."""


class UnfinishedError(Exception):
    """A round ended before all files were imported."""


class Imports:
    """Imports DAG files, to learn which DAGs they define, in rounds of limited length.

    The dag-processor parses nothing during a round. If a round lasted 50 s, Airflow would treat the
    DAGs of all files as deleted.

    Args:
        bundle: name of the bundle.
        folder: the folder of the bundle's snapshots. Each tree is written into a new subfolder, and
            its files are imported from there.
    """

    def __init__(self, bundle: str, folder: Path) -> None:
        self._bundle, self._folder = bundle, folder
        self._answers: dict[int, dict[str, Answer]] = {}
        self._give_up_at = 0.0

    @contextmanager
    def round(self) -> Iterator[Callable[[Tree, list[str]], Mapping[str, Answer]]]:
        """Begin a round; yields the function that imports files of a tree.

        A finished round forgets its answers, because the cause of an import error can lie outside
        the files. An unfinished round keeps its answers for the next round.

        Raises:
            UnfinishedError: the yielded function raises it if `ROUND_SECONDS` have passed and it
                has not imported all files.
        """
        self._give_up_at = time.monotonic() + ROUND_SECONDS
        yield self._check
        self._answers.clear()

    def _check(self, tree: Tree, files: list[str]) -> Mapping[str, Answer]:
        """Return each file's DAGs or import error; no DAGs if Airflow would not import the file."""
        answers = self._answers.setdefault(hash(frozenset(tree.items())), {})
        missing = [file for file in files if file not in answers]
        if missing:
            with written(tree, self._folder, like=Snapshots(self._folder).current) as folder:
                known = discovered(folder)
                for number, file in enumerate(missing, start=1):
                    answers[file] = dags_of(folder, self._bundle, file) if file in known else {}
                    if number < len(missing) and time.monotonic() > self._give_up_at:
                        raise UnfinishedError
        return {file: answers[file] for file in files}


def discovered(folder: Path) -> set[str]:
    """Return the files in a folder that Airflow would import; we must not import any others."""
    safe = conf.getboolean("core", "dag_discovery_safe_mode")
    found = list_py_file_paths(folder, safe_mode=safe)
    return {str(Path(path).relative_to(folder)) for path in found}


def dags_of(folder: Path, bundle: str, file: str) -> Answer:
    """Import a file in a fork of this process, so that Airflow need not be imported again.

    Args:
        folder: the folder of the bundle's files.
        bundle: name of the bundle.
        file: the file's path relative to the folder.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, folder, bundle, file))
    process.start()
    sender.close()
    try:
        if receiver.poll(SECONDS):
            return receiver.recv()  # type: ignore[no-any-return]
        return f"importing the file took over {SECONDS:.0f} s; move slow code into a task"
    except EOFError:
        process.join()
        return f"importing the file ended with {_ending(process.exitcode or 0)}"
    finally:
        process.kill()
        process.join()


def _answer(sender: Connection, folder: Path, bundle: str, file: str) -> None:
    """Import a file and send its DAGs or its error to the parent process.

    The import's output is discarded. The parent's database connections are not used.
    """
    if settings.engine:
        settings.engine.dispose(close=False)
    with open(os.devnull, "w") as nothing:
        for descriptor in (1, 2):
            os.dup2(nothing.fileno(), descriptor)
    # Imported here, because workers also load this file but do not need these two modules.
    from airflow.dag_processing.dagbag import BundleDagBag
    from airflow.serialization.serialized_objects import DagSerialization

    bag = BundleDagBag(str(folder / file), bundle_path=folder, bundle_name=bundle)
    if bag.import_errors:
        sender.send(str(next(iter(bag.import_errors.values()))))
        return
    try:
        for dag in bag.dags.values():
            DagSerialization.to_dict(dag)
        sender.send({dag.dag_id: sorted(dag.task_ids) for dag in bag.dags.values()})
    except Exception as error:  # a DAG's own objects can raise any exception
        sender.send(f"{type(error).__name__}: {error}")


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
