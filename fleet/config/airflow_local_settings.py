"""The file in which Airflow looks for cluster policies; ours are in `fleet/policy.py`.

Every Airflow process imports this file, so the file also installs the log filter of
`fleet/logs.py`.
"""

from fleet.logs import drop_served_logs
from fleet.policy import task_instance_mutation_hook, task_policy

__all__ = ["task_instance_mutation_hook", "task_policy"]

drop_served_logs()
