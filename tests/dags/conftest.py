import os

# A DAG's file is parsed as the dag-processor does, without a database.
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
