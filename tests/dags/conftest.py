import os

# Parse DAG files as the dag-processor does, without a database.
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
