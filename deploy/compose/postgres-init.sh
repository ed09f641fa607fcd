#!/bin/sh
# Runs once, when the data folder is created. Airflow's user owns its own database and nothing else.
set -eu
psql -v ON_ERROR_STOP=1 <<'END'
\getenv password AIRFLOW_PASSWORD
CREATE ROLE airflow LOGIN PASSWORD :'password';
CREATE DATABASE airflow OWNER airflow;
REVOKE CONNECT ON DATABASE postgres FROM PUBLIC;
END
