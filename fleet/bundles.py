"""The DAG bundle of both stacks: a folder, of which every process runs a snapshot.

The dag-processor alone reads the folder. It takes a snapshot of each change, unless the change
would harm a run, and parses the snapshot. Workers run tasks from the newest one.
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
"""After this time a file that is held back is checked again: it may have failed for a reason that
is not in it, and runs may have ended."""
log = logging.getLogger(__name__)


class SnapshotBundle(BaseDagBundle):
    """A folder of DAG files.

    Args:
        variable: the environment variable that names the folder. It is set for the dag-processor
            alone; where the variable or the folder is missing, there are no files.
        kwargs: those of BaseDagBundle.
    """

    supports_versioning = False

    def __init__(self, *, variable: str, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        folder = os.environ.get(variable)
        self._source = Path(folder) if folder else None
        self._snapshots = Snapshots(self.base_dir)
        self._path: Path | None = None
        self._seen: object = None
        self._again_at = math.inf

    def initialize(self) -> None:
        """Open the newest snapshot, and keep it until the next refresh."""
        self._path = self._snapshots.current
        if self._path is None and self._source:
            self.refresh()
        super().initialize()

    @property
    def path(self) -> Path:
        """The folder of the snapshot that is open."""
        return self._path or self.base_dir

    def get_current_version(self) -> None:
        """A run is not bound to a snapshot: its next task takes the newest one."""

    def refresh(self) -> None:
        """Take a snapshot if the folder has changed; called by the dag-processor alone."""
        try:
            state = state_of(self._source) if self._source else frozenset()
            if state == self._seen and time.monotonic() < self._again_at:
                return
            is_settled = self._take(*(read_tree(self._source) if self._source else ({}, {})))
        except OSError as error:
            log.error("error: DAG folder %s; its DAGs stay as they were", error)
            state, is_settled = None, False
        self._seen = state
        self._again_at = math.inf if is_settled else time.monotonic() + AGAIN_SECONDS

    def _take(self, new: Tree, faults: dict[str, str]) -> bool:
        """Publish what may be in force of the folder; returns whether that is all of it.

        Args:
            new: the folder's files.
            faults: those that cannot be read, with the reason.
        """
        with self.lock():
            current = self._snapshots.tree()
            old = without_stubs(current)
            new |= {name: old[name] for name in faults if name in old}
            settled = settle(new, old, in_force(self.name), self._check, needed)
            settled.reasons |= faults
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
    """The files of a bundle with DAGs that Airflow knows: file → ids of its DAGs."""
    asked = select(DagModel.relative_fileloc, DagModel.dag_id).where(
        DagModel.bundle_name == bundle, ~DagModel.is_stale
    )
    found: dict[str, set[str]] = {}
    for file, dag_id in session.execute(asked):
        found.setdefault(str(file), set()).add(dag_id)
    return found


@provide_session
def needed(dags: set[str], *, session: Session = NEW_SESSION) -> dict[str, set[str]]:
    """Those of some DAGs that have runs that go on → their tasks that have not ended.

    A paused DAG starts no more tasks, so it needs none.
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
