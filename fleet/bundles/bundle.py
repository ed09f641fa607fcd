"""The DAG bundle of both stacks: Airflow loads DAGs from snapshots of a folder.

Only the dag-processor reads the folder. When the folder changes, the dag-processor takes a snapshot
and parses it. The snapshot leaves out changes that would break a run. Workers run tasks from the
newest snapshot.
"""

import logging
import math
import os
import re
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from airflow.dag_processing.bundles.base import BaseDagBundle
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import NEW_SESSION, provide_session
from airflow.utils.state import State
from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from fleet.bundles.changes import Rules, settle, without_stubs
from fleet.bundles.imports import Imports, UnfinishedError
from fleet.bundles.snapshots import Snapshots, Tree, read_tree, state_of
from fleet.contract import queues

AGAIN_SECONDS = 30.0
"""Seconds until a change that is held back is checked again. By then, the run that needed the old
version might have ended, or an error whose cause is outside the file might be fixed."""
log = logging.getLogger(__name__)


class SnapshotBundle(BaseDagBundle):
    """A DAG bundle that consists of snapshots of a folder.

    Args:
        variable: the environment variable that names the folder. If its value is empty, the bundle
            has no files. Only the dag-processor has this variable.
        kwargs: arguments of BaseDagBundle.
    """

    supports_versioning = False

    def __init__(self, *, variable: str, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._folder = os.environ.get(variable)
        self._snapshots = Snapshots(self.base_dir)
        self._path: Path | None = None
        self._seen: object = None
        self._again_at = math.inf
        self._changed_at = datetime.now(UTC)
        self._imports = Imports(self.name, self.base_dir)
        self._fault = ""

    def initialize(self) -> None:
        """Open the newest snapshot; it stays open until the next refresh."""
        self._path = self._snapshots.current
        if self._path is None:
            self.refresh()
        super().initialize()

    @property
    def path(self) -> Path:
        """The folder of the open snapshot."""
        # Airflow runs a DAG's callbacks without initializing the bundle: then `_path` is None.
        return self._path or self._snapshots.current or self.base_dir

    def get_current_version(self) -> None:
        """Return None: a run has no fixed version, each of its tasks uses the newest snapshot."""

    def refresh(self) -> None:
        """Take a snapshot if the folder has changed.

        Only the dag-processor knows the folder. In any other process this method does nothing.
        """
        if self._folder is None:
            return
        try:
            state = state_of(Path(self._folder)) if self._folder else frozenset()
            if state != self._seen:
                self._changed_at = datetime.now(UTC)
            elif time.monotonic() < self._again_at:
                return
            is_settled = self._take(*(read_tree(Path(self._folder)) if self._folder else ({}, {})))
            wait = math.inf if is_settled else AGAIN_SECONDS
        except UnfinishedError:
            wait = 0.0
        except OSError as error:
            self._say_once(f"error: DAG folder: {error}; its DAGs stay as they were")
            return
        self._fault, self._seen, self._again_at = "", state, time.monotonic() + wait

    def _say_once(self, fault: str) -> None:
        if fault != self._fault:
            log.error(fault)
        self._fault = fault

    def _take(self, new: Tree, faults: dict[str, str]) -> bool:
        """Take a snapshot if anything changed; returns True if no change is held back.

        Args:
            new: the folder's files.
            faults: file that cannot be read → the reason.
        """
        with self.lock():
            current = self._snapshots.tree()
            old = without_stubs(current)
            new |= {name: old[name] for name in faults if name in old}
            needs = partial(needed, before=self._changed_at)
            with self._imports.round() as check:
                settled = settle(new, old, Rules(in_force(self.name), check, needs))
            settled.reasons |= faults
            self._path = self._snapshots.current
            if self._path is None or settled.files() != current:
                self._path = self._snapshots.publish(settled.files())
                for name, why in settled.reasons.items():
                    log.error("error: %s is held back: %s", name, why.strip().splitlines()[-1])
            longest = max(queue.execution_timeout for queue in queues().values())
            self._snapshots.prune(longest.total_seconds())
            return not settled.reasons


@provide_session
def in_force(bundle: str, *, session: Session = NEW_SESSION) -> dict[str, set[str]]:
    """Return file → ids of its DAGs, for the bundle's DAGs that Airflow does not count as stale."""
    asked = select(DagModel.relative_fileloc, DagModel.dag_id).where(
        DagModel.bundle_name == bundle, ~DagModel.is_stale
    )
    found: dict[str, set[str]] = {}
    for file, dag_id in session.execute(asked):
        archive = re.match(r"(.+?\.zip)/", str(file))
        found.setdefault(archive[1] if archive else str(file), set()).add(dag_id)
    return found


@provide_session
def needed(
    dags: set[str], *, before: datetime, session: Session = NEW_SESSION
) -> dict[str, set[str]]:
    """Return id of each DAG with unfinished runs → ids of the unfinished tasks of these runs.

    Paused DAGs are left out, because they start no more tasks. Runs created at or after the time
    `before` (the folder's last change) are left out too. Otherwise a DAG that always has an
    unfinished run could never change.
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
        .where(~DagModel.is_paused, func.coalesce(DagRun.created_at, DagRun.run_after) < before)
    )
    found: dict[str, set[str]] = {}
    for dag_id, task_id in session.execute(asked):
        found.setdefault(dag_id, set()).update([task_id] if task_id else [])
    return found
