"""Where Airflow looks for cluster policies; ours are in `fleet/policy.py`.

Every process of Airflow reads this file, so it also sets what all their logs leave out.
"""

from fleet.logs import drop_served_logs
from fleet.policy import task_instance_mutation_hook, task_policy

__all__ = ["task_instance_mutation_hook", "task_policy"]

drop_served_logs()
