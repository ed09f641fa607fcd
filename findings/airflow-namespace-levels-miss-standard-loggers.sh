#!/usr/bin/env bash
# apache-airflow 3.3.2, its setting [logging] namespace_levels.
#
# Behaviour: the setting is documented as the level of individual named loggers, and its example is
# `sqlalchemy=INFO sqlalchemy.engine=DEBUG`. It reaches loggers of structlog alone. Loggers of the
# standard library, among them both of the example and some of Airflow's own modules, keep their level,
# and no line says so.
#
# Each of the three below is set to CRITICAL, or to DEBUG, and asked for an error or its level.
#
# Output seen (Debian 12, Python 3.11, 2026-11-28):
#   a structlog logger set to CRITICAL: its error is dropped
#   a standard logger set to CRITICAL: its error is shown
#   sqlalchemy.engine set to DEBUG: its level is WARNING
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet uv==0.9.30
"$folder/venv/bin/uv" pip install --quiet --python "$folder/venv" apache-airflow==3.3.2
export AIRFLOW_HOME="$folder/airflow" AIRFLOW__CORE__LOAD_EXAMPLES=False
export AIRFLOW__LOGGING__NAMESPACE_LEVELS="of.structlog=CRITICAL of.standard=CRITICAL sqlalchemy.engine=DEBUG"
cat > "$folder/ask.py" <<'PYTHON'
import logging

import structlog
from airflow.logging_config import configure_logging

configure_logging()
structlog.get_logger("of.structlog").error("error of structlog's")
logging.getLogger("of.standard").error("error of the standard library's")
level = logging.getLevelName(logging.getLogger("sqlalchemy.engine").level)
print("level of sqlalchemy.engine:", level, flush=True)
PYTHON
said=$("$folder/venv/bin/python" -W ignore "$folder/ask.py" 2>&1)
is_shown() { if grep -q "$1" <<<"$said"; then echo "is shown"; else echo "is dropped"; fi; }
structlogs=$(is_shown "error of structlog's")
standards=$(is_shown "error of the standard library's")
level=$(sed -n 's/^level of sqlalchemy.engine: //p' <<<"$said")
echo "a structlog logger set to CRITICAL: its error $structlogs"
echo "a standard logger set to CRITICAL: its error $standards"
echo "sqlalchemy.engine set to DEBUG: its level is $level"
[ "$structlogs" = "is dropped" ] && [ "$standards" = "is shown" ] && [ "$level" = WARNING ]
