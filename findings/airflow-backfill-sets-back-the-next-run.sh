#!/usr/bin/env bash
# apache-airflow 3.3.2, a DAG with a cron schedule and catchup off (the default) that has not run yet,
# and whose first run is to be at the next midnight.
#
# Behaviour: a backfill is for days of the past, and `airflow dags next-execution` is expected to name
# the same time before and after it. But at the next parse of the file the newest run of a backfill
# counts as the last scheduled one, so the next run becomes the last midnight: it is overdue, and a
# scheduler makes it at once, with default parameters. Nobody asked for that run.
#
# No scheduler runs here: the backfill only creates its runs, and `dags reserialize` is the parse.
#
# Output seen (Debian 12, Python 3.11, SQLite, 2026-11-27):
#   next run before the backfill: in the future
#   next run after it: in the past
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet uv==0.9.30
"$folder/venv/bin/uv" pip install --quiet --python "$folder/venv" apache-airflow==3.3.2
export PATH="$folder/venv/bin:$PATH" AIRFLOW_HOME="$folder/airflow"
export AIRFLOW__CORE__LOAD_EXAMPLES=False AIRFLOW__LOGGING__LOGGING_LEVEL=ERROR
mkdir -p "$folder/airflow/dags"
cat > "$folder/airflow/dags/daily.py" <<'PYTHON'
from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, CronTriggerTimetable

midnight = CronTriggerTimetable("0 0 * * *", timezone="UTC", run_immediately=timedelta(0))
with DAG("daily", schedule=midnight, is_paused_upon_creation=False):
    EmptyOperator(task_id="nothing")
PYTHON

next_run() {
    airflow dags reserialize >/dev/null 2>&1
    at=$(airflow dags next-execution daily 2>/dev/null | grep -Eo '^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]+' | tail -1)
    [ -n "$at" ] || { echo "no next run was named"; return 1; }
    if [ "$(date -u -d "$at" +%s)" -gt "$(date +%s)" ]; then echo "in the future"; else echo "in the past"; fi
}

airflow db migrate >/dev/null 2>&1
before=$(next_run)
echo "next run before the backfill: $before"
airflow backfill create --dag-id daily --from-date 2026-11-20 --to-date 2026-11-21 >/dev/null 2>&1
after=$(next_run)
echo "next run after it: $after"
[ "$before" = "in the future" ] && [ "$after" = "in the past" ]
