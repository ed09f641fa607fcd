"""Read the next run of daily DAGs from Airflow's tables, after a stop and after a backfill.

test_timetable.py runs this program with a database of its own. The program prints JSON.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

from airflow.dag_processing.collection import update_dag_parsing_results_in_db
from airflow.dag_processing.dagbag import DagBag
from airflow.jobs.job import Job
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.sdk import timezone
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunTriggeredByType, DagRunType

from fleet import init
from fleet.policy import in_line
from fleet.timetable import GRACE

NOW = timezone.utcnow()
MIDNIGHT = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
DAYS_AGO = MIDNIGHT - timedelta(days=3)


def parse(dags) -> None:
    """Write parsed DAGs to the database as the dag-processor does."""
    with create_session() as session:
        update_dag_parsing_results_in_db("dags-folder", None, dags, {}, 1.0, set(), session)


def next_runs() -> dict[str, str]:
    with create_session() as session:
        models = session.query(DagModel).filter(DagModel.next_dagrun_create_after.is_not(None))
        return {model.dag_id: str(model.next_dagrun_create_after) for model in models}


def put_in_line_of_an_older_stack() -> dict[str, list[object]]:
    """Return task of a waiting run → its pool, and whether its weight is in the line."""
    with create_session() as session:
        dag = SerializedDagModel.get_dag("fleet_check", session=session)
        dag.create_dagrun(
            run_id="waiting",
            run_after=NOW,
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.QUEUED,
            session=session,
        )
        session.query(TaskInstance).update({"pool": "default_pool", "priority_weight": 10})
    init.put_in_line()
    with create_session() as session:
        return {
            task.task_id: [task.pool, abs(task.priority_weight - in_line(10, NOW)) <= 30]
            for task in session.query(TaskInstance)
        }


def main(folders: list[str]) -> None:
    initdb()
    with create_session() as session:
        session.add(DagBundleModel(name="dags-folder"))
    found = [dag for folder in folders for dag in DagBag(folder).dags.values()]
    dags = [LazyDeserializedDAG.from_dag(dag) for dag in found]
    parse(dags)
    tomorrow = MIDNIGHT + timedelta(days=1)
    ahead = MIDNIGHT if NOW - MIDNIGHT <= GRACE else tomorrow
    seen = {
        name: str(at)
        for name, at in {
            "three days ago": DAYS_AGO,
            "midnight": MIDNIGHT,
            "tomorrow": tomorrow,
            "ahead": ahead,
        }.items()
    }
    seen["at first"] = next_runs()
    with create_session() as session:
        for dag in found:
            session.add(
                DagRun(
                    dag_id=dag.dag_id,
                    run_id=f"backfill__{dag.dag_id}",
                    run_type=DagRunType.BACKFILL_JOB,
                    logical_date=DAYS_AGO,
                    data_interval=(DAYS_AGO, DAYS_AGO),
                    run_after=DAYS_AGO,
                    state=DagRunState.SUCCESS,
                    triggered_by=DagRunTriggeredByType.BACKFILL,
                )
            )
    parse(dags)
    seen["after a backfill"] = next_runs()
    with create_session() as session:
        session.query(DagModel).filter(DagModel.next_dagrun.is_not(None)).update(
            {"next_dagrun": DAYS_AGO, "next_dagrun_create_after": DAYS_AGO}
        )
    Job()  # the scheduler's first step when it starts
    seen["when the scheduler starts"] = next_runs()
    parse(dags)
    seen["after a stop"] = next_runs()
    seen["put in line"] = put_in_line_of_an_older_stack()
    print(json.dumps(seen))


if __name__ == "__main__":
    assert Path(sys.argv[1]).is_dir()
    main(sys.argv[1:])
