"""The DAG bundle of both stacks: Airflow loads DAGs from snapshots of a folder or a Git repository.

Only the dag-processor reads the folder or the repository. When the files change, the dag-processor
takes a snapshot and parses it. The snapshot leaves out changes that would break a run. Workers run
tasks from the newest snapshot; a run of a DAG from Git keeps the snapshot with which it began.
"""

import logging
import math
import os
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from airflow.dag_processing.bundles.base import BaseDagBundle, BundleVersion
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import NEW_SESSION, provide_session
from airflow.utils.state import State
from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from fleet.bundles.changes import Rules, settle, without_stubs
from fleet.bundles.fetching import Place
from fleet.bundles.imports import Imports, UnfinishedError
from fleet.bundles.repository import Repository
from fleet.bundles.snapshots import Folder, Snapshots, Tree
from fleet.contract import queues
from fleet.git import Access

AGAIN_SECONDS = 30.0
"""Seconds until a change that is held back is checked again. By then, the run that needed the old
version might have ended, or an error whose cause is outside the file might be fixed."""
KEPT_DAYS = 30
"""Days for which a replaced snapshot of a Git repository is kept, so that a task of a run that has
ended can be cleared. The snapshots of unfinished runs are always kept."""
LONGEST = max(queue.execution_timeout for queue in queues().values())
"""The longest time for which a task can use a snapshot of a folder."""
log = logging.getLogger(__name__)
_PLACE = ("ref", "folder")
_ACCESS = ("credentials", "key", "known_hosts")


class SnapshotBundle(BaseDagBundle):
    """A DAG bundle that consists of snapshots of a folder, or of a Git repository.

    Only the dag-processor has the environment variables that `variable` and `git` name. The folder
    of the snapshots is FLEET_SNAPSHOTS, in every process.

    Args:
        variable: the environment variable that names the folder. If its value is empty, the bundle
            has no files.
        git: the environment variable that holds the address of a Git repository to be used
            instead of the folder. Further variables have this name plus an ending: `…_REF` and
            `…_FOLDER` (see `Place`), `…_CREDENTIALS`, `…_KEY` and `…_KNOWN_HOSTS` (see `Access`).
        kwargs: arguments of BaseDagBundle.
    """

    def __init__(self, *, variable: str, git: str = "", **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._home = Path(os.environ.get("FLEET_SNAPSHOTS") or self.base_dir.parent) / self.name
        self._source = _repository(git, self._home) or _folder(variable)
        # If True, Airflow binds a new run to the version that `get_current_version` returns.
        self.supports_versioning = isinstance(self._source, Repository)
        self._snapshots = Snapshots(self._home)
        self._path: Path | None = None
        self._seen: object = "nothing yet"
        self._again_at = math.inf
        self._changed_at = datetime.now(UTC)
        self._imports = Imports(self.name, self._home)
        self._fault = ""

    def initialize(self) -> None:
        """Open the snapshot of this version, or else the newest; it stays open until a refresh.

        Raises:
            OSError: there is no snapshot, nothing has been fetched yet, and Airflow knows DAGs of
                this bundle. Without this error Airflow would treat these DAGs as deleted.
        """
        self._path = self._of_version() or self._snapshots.current
        if self._path is None:
            self.refresh()
        if self._path is None and self._source and in_force(self.name):
            raise OSError(f"the DAGs of bundle {self.name} have not been fetched yet")
        super().initialize()

    def _of_version(self) -> Path | None:
        if self.version is None:
            return None
        if path := self._snapshots.named(self.version):
            return path
        log.warning("version %s of the DAGs was deleted; using the newest version", self.version)
        return None

    @property
    def path(self) -> Path:
        """The folder of the open snapshot."""
        # Airflow runs a DAG's callbacks without initializing the bundle: then `_path` is None.
        return self._path or self._snapshots.current or self._home

    def get_current_version(self) -> BundleVersion | None:
        """Return the name of the open snapshot, if the DAGs come from Git.

        For DAGs from a folder, return None: a run then has no fixed version, and each of its tasks
        uses the newest snapshot.
        """
        if not self.supports_versioning or self._path is None:
            return None
        return BundleVersion(version=self._path.name)

    def refresh(self) -> None:
        """Take a snapshot if the files have changed.

        Only the dag-processor knows where the files are. In any other process this method does
        nothing.
        """
        try:
            state = self._source.state() if self._source else None
            self._say_once("")
            if self._source is None or state is None:  # None: nothing has been fetched yet
                return
            if state != self._seen:
                self._changed_at = datetime.now(UTC)
            elif time.monotonic() < self._again_at:
                return
            is_settled = self._take(*self._source.tree(), self._source.label)
            wait = math.inf if is_settled else AGAIN_SECONDS
        except UnfinishedError:
            wait = 0.0
        except OSError as error:
            self._say_once(f"error: DAG files: {error}; the DAGs in force stay")
            return
        self._seen, self._again_at = state, time.monotonic() + wait

    def _say_once(self, fault: str) -> None:
        if fault and fault != self._fault:
            log.error(fault)
        self._fault = fault

    def _take(self, new: Tree, faults: dict[str, str], label: str) -> bool:
        """Take a snapshot if anything changed; returns True if no change is held back.

        Args:
            new: the files that can be read.
            faults: file that cannot be read → the reason.
            label: the end of the snapshot's name.
        """
        with self.lock():
            current = self._snapshots.tree()
            old = without_stubs(current)
            new |= {name: old[name] for name in faults if name in old}
            needs = partial(needed, before=self._changed_at)
            with self._imports.round() as check:
                rules = Rules(in_force(self.name), check, needs, self.supports_versioning)
                settled = settle(new, old, rules)
            settled.reasons |= faults
            self._path = self._snapshots.current
            if self._path is None or settled.files() != current:
                self._path = self._snapshots.publish(settled.files(), label)
                for name, why in settled.reasons.items():
                    log.error("error: %s is held back: %s", name, why.strip().splitlines()[-1])
            self._prune()
            return not settled.reasons

    def _prune(self) -> None:
        kept = timedelta(days=KEPT_DAYS) if self.supports_versioning else LONGEST
        self._snapshots.prune(kept.total_seconds(), but=in_use(self.name))


def _repository(variable: str, folder: Path) -> Repository | None:
    """Return the Git repository that an environment variable names; None if it names none."""
    address = os.environ.get(variable, "")
    if not address:
        return None
    # Imported here, because only the dag-processor needs it.
    from fleet.bundles.callbacks import forget_callbacks

    forget_callbacks()
    told = {word: os.environ.get(f"{variable}_{word.upper()}", "") for word in _ACCESS + _PLACE}
    place = Place(address, *(told[word] for word in _PLACE))
    access = Access(*(told[word] for word in _ACCESS)).existing()
    return Repository(replace(place, ref=place.ref or "main"), access, folder)


def _folder(variable: str) -> Folder | None:
    """Return the folder that an environment variable names; None if the variable is not set."""
    return Folder(os.environ[variable]) if variable in os.environ else None


@provide_session
def in_use(bundle: str, *, session: Session = NEW_SESSION) -> set[str]:
    """Return the versions of the bundle to which unfinished runs are bound."""
    asked = (
        select(DagRun.bundle_version)
        .join(DagModel, DagModel.dag_id == DagRun.dag_id)
        .where(DagModel.bundle_name == bundle, DagRun.bundle_version.is_not(None))
        .where(DagRun.state.in_(State.unfinished_dr_states))
    )
    return set(session.scalars(asked))


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
    """Return id of each DAG with unfinished runs → ids of the tasks that new files must define.

    For most runs these are the run's unfinished tasks. A run that is bound to a version takes its
    tasks from that version, so it adds no task; but new files must still define its DAG.

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
                DagRun.bundle_version.is_(None),
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
