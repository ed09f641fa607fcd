"""Send tasks and ask for results while Redis is down, starts, and is down again.

test_executor.py runs this program with the address of a Redis server that it starts and stops on
request. The program prints one JSON line after each step and waits for a line before the next one.
"""

import json
import sys
import time
from uuid import uuid4

from airflow.executors.workloads import ExecuteTask
from airflow.executors.workloads.base import BundleInfo
from airflow.executors.workloads.task import TaskInstanceDTO
from celery.result import AsyncResult
from kombu.exceptions import OperationalError
from redis.exceptions import ResponseError

from fleet.executor import FleetExecutor, is_refusal

executor = FleetExecutor(parallelism=32)
wrapped = OperationalError("NOPERM")
wrapped.__cause__ = ResponseError("NOPERM")
assert is_refusal(wrapped)
assert not is_refusal(OperationalError("away"))
N_TASKS = 10


def workload(number: int) -> ExecuteTask:
    ti = TaskInstanceDTO(
        id=uuid4(),
        dag_version_id=uuid4(),
        task_id="work",
        dag_id="due",
        run_id=f"run-{number}",
        try_number=1,
        map_index=-1,
        pool_slots=1,
        priority_weight=1,
        queue="cpu",
        external_executor_id=f"celery-{number}",
    )
    bundle = BundleInfo(name="own", version=None)
    return ExecuteTask(ti=ti, dag_rel_path="due.py", token="t", log_path="log", bundle_info=bundle)


def step(**more: object) -> None:
    """Let the executor take a step, print what the executor did, and wait for the test."""
    began = time.monotonic()
    executor.heartbeat()
    events = {str(key.run_id): str(state[0]) for key, state in executor.get_event_buffer().items()}
    told = {"queued": len(executor.queued_tasks), "running": len(executor.running)}
    line = {**told, "events": events, "seconds": time.monotonic() - began, **more}
    print(json.dumps(line), flush=True)
    sys.stdin.readline()


for number in range(N_TASKS):
    executor.queue_workload(workload(number), session=None)
for _ in range(6):  # Airflow's own executor drops a task after three sends that timed out
    step()
step()  # Redis runs
step()  # Redis is down again
sent, unsent = workload(100).ti, workload(101).ti.model_copy(update={"external_executor_id": None})
reset = executor.try_adopt_task_instances([sent, unsent])
step(reset=[ti.run_id for ti in reset])
ended, lost, alive = (workload(number).ti.key for number in (0, 1, 2))
states = {ended: ("success", 0.0), lost: ("running", 31.0), alive: ("running", 29.0)}
executor._settle([ended, lost, alive], states)
step(left=[key in executor.workloads for key in (ended, lost, alive)])
done = AsyncResult("celery-3", app=executor.celery_app)
done.backend.store_result("celery-3", None, "SUCCESS")
step()
