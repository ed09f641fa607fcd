"""Ask every queue of the contract for a sign of life: which worker serves it, on what it computes.

One task a queue, `music-genre device` on whichever worker takes it; its result names cores, free
memory and the GPU, or says that there is none. `make up` runs it after each start.
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
