"""Check that a worker serves each queue of the contract, and show that worker's hardware.

The DAG has one task for each queue. The task runs `music-genre device` on a worker of the queue.
The task's result names the worker's cores, free memory and GPU, or says that the worker has no GPU.
`make up` runs this DAG after each start.
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
