#!/usr/bin/env bash
# apache-airflow-providers-git 1.0.1 with apache-airflow 3.3.2: GitDagBundle while its host is away.
#
# Behaviour: a bundle that has cloned its repository deletes the local clone when it is initialized again
# while the host cannot be reached: the failed fetch is taken for a damaged clone. So a process that starts
# during an outage has no DAG files, although a complete clone was on its disk. What stays is the working
# copy, which the bundle does not use without the clone.
#
# The bundle is initialized, the repository is moved away, and the bundle is initialized again.
#
# Output seen (Debian 12, Python 3.11, git 2.39, 2026-11-28):
#   host there: initialized, clone on disk
#   host away: RuntimeError: Error cloning repository, no clone on disk
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet uv==0.9.30
"$folder/venv/bin/uv" pip install --quiet --python "$folder/venv" \
    apache-airflow==3.3.2 apache-airflow-providers-git==1.0.1
git init -q -b main "$folder/dags"
touch "$folder/dags/dag.py"
git -C "$folder/dags" add .
git -C "$folder/dags" -c user.name=a -c user.email=a@localhost commit -qm first
export AIRFLOW_HOME="$folder/airflow" AIRFLOW__CORE__LOAD_EXAMPLES=False
export AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH="$folder/bundles"
cat > "$folder/ask.py" <<'PYTHON'
import sys

from airflow.providers.git.bundles.git import GitDagBundle

bundle = GitDagBundle(name="dags", tracking_ref="main", repo_url=sys.argv[1])
try:
    bundle.initialize()
    said = "initialized"
except Exception as error:
    said = f"{type(error).__name__}: {error}"
print(f"answer: {said}, {'clone' if bundle.bare_repo_path.exists() else 'no clone'} on disk")
PYTHON
ask() {
    "$folder/venv/bin/python" -W ignore "$folder/ask.py" "file://$folder/dags" 2>/dev/null |
        sed -n 's/^answer: //p'
}
"$folder/venv/bin/airflow" db migrate >/dev/null 2>&1
there=$(ask)
mv "$folder/dags" "$folder/elsewhere"
away=$(ask)
echo "host there: $there"
echo "host away: $away"
[ "$there" = "initialized, clone on disk" ] &&
    [ "$away" = "RuntimeError: Error cloning repository, no clone on disk" ]
