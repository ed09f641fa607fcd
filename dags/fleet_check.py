"""Check every queue of the contract: which worker serves it, and what that worker computes on.

One task per queue runs `music-genre device` on whichever worker takes it. The task's result names
the worker's cores, free memory and GPU, or says that there is no GPU. `make up` runs this DAG after
each start.
"""

from datetime import timedelta

from airflow.sdk import DAG

from fleet.contract import queues
from fleet.operators.command import CommandOperator

with DAG(
    "fleet_check",
    schedule=None,
    is_paused_upon_creation=False,
    default_args={"execution_timeout": timedelta(minutes=5), "priority_weight": 10},
    doc_md=__doc__,
    tags=["music-genre"],
):
    for queue in queues():
        CommandOperator(task_id=f"device-{queue}", queue=queue, command=["music-genre", "device"])
