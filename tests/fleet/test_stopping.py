"""A stopping worker stops tasks that reschedule themselves, and lets other tasks end."""

import json
import subprocess
import sys

from fleet.contract import FINISH_SECONDS
from fleet.operators.process import TERM_GRACE_SECONDS
from fleet.workers.messages import LEASE_SECONDS

WORKER = """
import json, os, signal, sys, time
from celery import signals
from fleet import kernel
from fleet.workers import stopping

def supervisor(name, seconds):
    pid = os.fork()
    if pid == 0:
        task = os.fork()
        if task == 0:
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            if name:
                kernel.prctl(kernel.PR_SET_NAME, name.encode())
            time.sleep(60)
        time.sleep(seconds)
        os._exit(0)
    return pid

stopping.FINISH_SECONDS = 3.0
running = {supervisor(kernel.HANDS_BACK, 60): "hands back", supervisor("", 1): "short",
           supervisor("", 60): "long"}
time.sleep(0.5)
began = time.monotonic()
signals.worker_shutting_down.send(sender=None)
ended = {}
for _ in running:
    pid, status = os.wait()
    ended[running[pid]] = [round(time.monotonic() - began, 1), status]
print(json.dumps(ended))
"""


def test_a_task_that_hands_itself_back_is_stopped_at_once_and_others_may_end():
    printed = subprocess.run(
        [sys.executable, "-c", WORKER], capture_output=True, text=True, check=True
    )
    ended = json.loads(printed.stdout.splitlines()[-1])
    assert {name: status for name, (_, status) in ended.items()} == {
        "hands back": 15,
        "short": 0,
        "long": 15,
    }
    assert ended["hands back"][0] < ended["short"][0] < 3.0 <= ended["long"][0]


def test_a_stopping_worker_is_gone_before_its_leases_end():
    assert FINISH_SECONDS + TERM_GRACE_SECONDS < LEASE_SECONDS
