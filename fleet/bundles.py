"""The DAG bundle of both stacks: a folder of DAG files, run from snapshots.

Only the dag-processor reads the folder. When the folder changes, it takes a snapshot without the
changes that would harm a run, and parses the snapshot. Workers run tasks from the newest snapshot.
"""

import logging
import math
import os
import re
import time
from collections.abc import Mapping
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

from fleet.contract import queues
from fleet.settling import Answer, Rules, settle, without_stubs
from fleet.snapshots import Snapshots, Tree, read_tree, state_of, written

AGAIN_SECONDS = 30.0
"""Seconds until a change that is held back is checked again: runs may have ended, and the cause of
an error may have been outside the file."""
CHECK_SECONDS = 12.0
"""After this time no further check is begun before the next refresh."""
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
        self._changed_at = datetime.now(UTC)
        self._checks = Checks(self.name, self.base_dir)
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
        # Airflow does not initialize the bundle of a DAG whose callbacks it runs.
        return self._path or self._snapshots.current or self.base_dir

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
            if state != self._seen:
                self._changed_at = datetime.now(UTC)
            elif time.monotonic() < self._again_at:
                return
            is_settled = self._take(*(read_tree(Path(self._folder)) if self._folder else ({}, {})))
        except OSError as error:
            self._say_once(f"error: DAG folder: {error}; its DAGs stay as they were")
            return
        self._fault, self._seen = "", state
        wait = math.inf if is_settled else AGAIN_SECONDS
        self._again_at = 0.0 if self._checks.is_unfinished else time.monotonic() + wait

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
            self._checks.begin()
            needs = partial(needed, before=self._changed_at)
            settled = settle(new, old, Rules(in_force(self.name), self._checks.check, needs))
            settled.reasons |= faults
            self._path = self._snapshots.current
            if self._path is None or settled.files() != current:
                self._path = self._snapshots.publish(settled.files())
                for name, why in settled.reasons.items():
                    log.error("error: %s is held back: %s", name, why.strip().splitlines()[-1])
            longest = max(queue.execution_timeout for queue in queues().values())
            self._snapshots.prune(longest.total_seconds())
            return not settled.reasons


class Checks:
    """Imports of DAG files, as many at a time as the dag-processor can wait for.

    While it waits, it does nothing else: Airflow would take the other DAGs for gone after 50 s.
    """

    def __init__(self, bundle: str, folder: Path) -> None:
        self._bundle, self._folder = bundle, folder
        self._answers: dict[int, dict[str, Answer]] = {}
        self._give_up_at = 0.0
        self.is_unfinished = False

    def begin(self) -> None:
        """Start a new round. Only answers of a round that was too short are used again."""
        if not self.is_unfinished:
            self._answers.clear()
        self._give_up_at = time.monotonic() + CHECK_SECONDS
        self.is_unfinished = False

    def check(self, tree: Tree, files: list[str]) -> Mapping[str, Answer]:
        """What each file of the tree defines; nothing if Airflow would not import it."""
        answers = self._answers.setdefault(hash(frozenset(tree.items())), {})
        missing = [file for file in files if file not in answers]
        if missing:
            from fleet.dag_check import dags_of, discovered  # workers need none of it

            with written(tree, self._folder, like=Snapshots(self._folder).current) as folder:
                known = discovered(folder)
                for file in missing:
                    if time.monotonic() > self._give_up_at:
                        self.is_unfinished = True
                        break
                    answers[file] = dags_of(folder, self._bundle, file) if file in known else {}
        return {file: answers.get(file, "it is not checked yet") for file in files}


@provide_session
def in_force(bundle: str, *, session: Session = NEW_SESSION) -> dict[str, set[str]]:
    """The files of a bundle that have DAGs in Airflow → the ids of these DAGs."""
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
    """Which of these DAGs have unfinished runs → the ids of their unfinished tasks.

    A paused DAG is left out, because it starts no more tasks. So are runs that began after a time:
    a DAG that always has a run would otherwise never change.
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
