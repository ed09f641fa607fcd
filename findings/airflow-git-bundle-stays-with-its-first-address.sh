#!/usr/bin/env bash
# apache-airflow-providers-git 1.0.1 with apache-airflow 3.3.2: GitDagBundle and its `repo_url`.
#
# Behaviour: the bundle clones the address once. When `repo_url` names another repository later, it keeps
# fetching from the first one: `initialize` succeeds, and the DAG files and the version are those of the
# old repository, with no warning. Only a deletion of the bundle's folder makes it look at the new address.
#
# Two repositories hold a file each. The bundle is initialized with the first address, then, as after a
# change of the setting, with the second.
#
# Output seen (Debian 12, Python 3.11, git 2.39, 2026-11-28):
#   repo_url old: old.py
#   repo_url new: old.py
#   repo_url new, folder deleted: new.py
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet uv==0.9.30
"$folder/venv/bin/uv" pip install --quiet --python "$folder/venv" \
    apache-airflow==3.3.2 apache-airflow-providers-git==1.0.1
for name in old new; do
    git init -q -b main "$folder/$name"
    touch "$folder/$name/$name.py"
    git -C "$folder/$name" add .
    git -C "$folder/$name" -c user.name=a -c user.email=a@localhost commit -qm first
done
export AIRFLOW_HOME="$folder/airflow" AIRFLOW__CORE__LOAD_EXAMPLES=False
export AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH="$folder/bundles"
cat > "$folder/ask.py" <<'PYTHON'
import sys

from airflow.providers.git.bundles.git import GitDagBundle

bundle = GitDagBundle(name="dags", tracking_ref="main", repo_url=sys.argv[1])
bundle.initialize()
print("files:", *sorted(path.name for path in bundle.path.glob("*.py")))
PYTHON
ask() { "$folder/venv/bin/python" -W ignore "$folder/ask.py" "file://$folder/$1" 2>/dev/null | sed -n 's/^files: //p'; }
"$folder/venv/bin/airflow" db migrate >/dev/null 2>&1
first=$(ask old)
second=$(ask new)
rm -rf "$folder/bundles"
third=$(ask new)
echo "repo_url old: $first"
echo "repo_url new: $second"
echo "repo_url new, folder deleted: $third"
[ "$first" = old.py ] && [ "$second" = old.py ] && [ "$third" = new.py ]
