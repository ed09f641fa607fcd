"""Find a file's DAGs by importing it in a separate process, because an import runs code."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from airflow import settings
from airflow.configuration import conf
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.serialization.serialized_objects import DagSerialization
from airflow.utils.file import list_py_file_paths

from fleet.settling import Answer

SECONDS = 35.0
"""Time limit for importing one file; Airflow's own limit is 30 s."""


def discovered(folder: Path) -> set[str]:
    """Return the files of a folder that Airflow would import; a check must import no other file."""
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
        return f"its import takes longer than {SECONDS:.0f} s"
    except EOFError:
        process.join()
        return f"its import ends with {_ending(process.exitcode or 0)}"
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
    bag = BundleDagBag(str(folder / file), bundle_path=folder, bundle_name=bundle)
    if bag.import_errors:
        sender.send(str(next(iter(bag.import_errors.values()))))
        return
    try:
        for dag in bag.dags.values():
            DagSerialization.to_dict(dag)
        sender.send({dag.dag_id: sorted(dag.task_ids) for dag in bag.dags.values()})
    except Exception as error:  # a DAG's own objects can raise anything
        sender.send(f"{type(error).__name__}: {error}")


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
