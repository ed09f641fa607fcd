"""The DAG bundle of both stacks: a folder of DAG files, run from snapshots.

Only the dag-processor reads the folder. When the folder changes, it takes a snapshot without the
changes that would harm a run, and parses the snapshot. Workers run tasks from the newest snapshot.
"""

import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from airflow.dag_processing.bundles.base import BaseDagBundle
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import NEW_SESSION, provide_session
from airflow.utils.state import State
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from fleet.contract import queues
from fleet.settling import Answer, settle, without_stubs
from fleet.snapshots import Snapshots, Tree, read_tree, state_of, written

AGAIN_SECONDS = 30.0
"""Seconds until a change that is held back is checked again: runs may have ended, and the cause of
an error may have been outside the file."""
log = logging.getLogger(__name__)


class SnapshotBundle(BaseDagBundle):
    """A folder of DAG files.

    Args:
        variable: the environment variable that names the folder; empty for no folder. It is set
            for the dag-processor alone.
        kwargs: those of BaseDagBundle.
    """

    supports_versioning = False

    def __init__(self, *, variable: str, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._folder = os.environ.get(variable)
        self._snapshots = Snapshots(self.base_dir)
        self._path: Path | None = None
        self._seen: object = None
        self._again_at = math.inf
        self._fault = ""

    def initialize(self) -> None:
        """Open the newest snapshot, and keep it until the next refresh."""
        self._path = self._snapshots.current
        if self._path is None:
            self.refresh()
        super().initialize()

    @property
    def path(self) -> Path:
        """The folder of the snapshot that is open."""
        return self._path or self.base_dir

    def get_current_version(self) -> None:
        """Return no version: a run is not bound to a snapshot, each task takes the newest one."""

    def refresh(self) -> None:
        """Take a snapshot if the folder has changed.

        Only the dag-processor knows the folder. In any other process this does nothing.
        """
        if self._folder is None:
            return
        try:
            state = state_of(Path(self._folder)) if self._folder else frozenset()
            if state == self._seen and time.monotonic() < self._again_at:
                return
            is_settled = self._take(*(read_tree(Path(self._folder)) if self._folder else ({}, {})))
        except OSError as error:
            self._say_once(f"error: DAG folder: {error}; its DAGs stay as they were")
            return
        self._fault, self._seen = "", state
        self._again_at = math.inf if is_settled else time.monotonic() + AGAIN_SECONDS

    def _say_once(self, fault: str) -> None:
        if fault != self._fault:
            log.error(fault)
        self._fault = fault

    def _take(self, new: Tree, faults: dict[str, str]) -> bool:
        """Take a snapshot if anything changed; returns whether no change is held back.

        Args:
            new: the folder's files.
            faults: files that cannot be read → the reason.
        """
        with self.lock():
            current = self._snapshots.tree()
            old = without_stubs(current)
            new |= {name: old[name] for name in faults if name in old}
            settled = settle(new, old, in_force(self.name), self._check, needed)
            settled.reasons |= faults
            self._path = self._snapshots.current
            if self._path is None or settled.files() != current:
                self._path = self._snapshots.publish(settled.files())
                for name, why in settled.reasons.items():
                    log.error("error: %s is held back: %s", name, why.strip().splitlines()[-1])
            longest = max(queue.execution_timeout for queue in queues().values())
            self._snapshots.prune(longest.total_seconds())
            return not settled.reasons

    def _check(self, tree: Tree, files: list[str]) -> Mapping[str, Answer]:
        """Import files of a tree."""
        if not files:
            return {}
        from fleet.dag_check import dags_of  # workers need none of it

        with written(tree, self.base_dir) as folder:
            return {file: dags_of(folder, self.name, file) for file in files}


@provide_session
def in_force(bundle: str, *, session: Session = NEW_SESSION) -> dict[str, set[str]]:
    """The files of a bundle that have DAGs in Airflow → the ids of these DAGs."""
    asked = select(DagModel.relative_fileloc, DagModel.dag_id).where(
        DagModel.bundle_name == bundle, ~DagModel.is_stale
    )
    found: dict[str, set[str]] = {}
    for file, dag_id in session.execute(asked):
        found.setdefault(str(file), set()).add(dag_id)
    return found


@provide_session
def needed(dags: set[str], *, session: Session = NEW_SESSION) -> dict[str, set[str]]:
    """Which of these DAGs have unfinished runs → the ids of their unfinished tasks.

    A paused DAG is left out, because it starts no more tasks.
    """
    if not dags:
        return {}
    asked = (
        select(DagRun.dag_id, TaskInstance.task_id)
        .join(DagModel, DagModel.dag_id == DagRun.dag_id)
        .outerjoin(
            TaskInstance,
            and_(
                TaskInstance.dag_id == DagRun.dag_id,
                TaskInstance.run_id == DagRun.run_id,
                or_(TaskInstance.state.is_(None), TaskInstance.state.not_in(State.finished)),
            ),
        )
        .where(DagRun.dag_id.in_(dags), DagRun.state.in_(State.unfinished_dr_states))
        .where(~DagModel.is_paused)
    )
    found: dict[str, set[str]] = {}
    for dag_id, task_id in session.execute(asked):
        found.setdefault(dag_id, set()).update([task_id] if task_id else [])
    return found
