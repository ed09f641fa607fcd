"""Write a soak's table from the JSON lines that the suites wrote; a test's last line counts.

python tests/soak.py .soak.jsonl docs/soak.md
"""

import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HEAD = """\
# Tests that are too slow to run for every change

Written by `make soak`: every test that is marked `soak`, its result and its measurements.
{date}, {cores} cores of {processor}, Python {python}, torch {torch}.

| suite | test | seconds | result |
| --- | --- | --- | --- |
"""


def line_of(row: dict[str, Any]) -> str:
    """Make the table row of one test."""
    file, _, name = row["test"].partition("::test_")
    figures = "; ".join(f"{name}: {value}" for name, value in row["figures"].items())
    result = {True: "passed", False: "**failed**", None: "not run"}[row["passed"]]
    told = ". ".join(filter(None, (result, figures)))
    return f"| {Path(file).parent.name} | {name.replace('_', ' ')} | {row['seconds']} | {told} |"


def processor() -> str:
    """Name this machine's processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def main() -> int:
    """Write the table; returns 1 if a test failed or did not run."""
    rows_path, page = map(Path, sys.argv[1:])
    lines = map(json.loads, rows_path.read_text().splitlines())
    rows = sorted({line["test"]: line for line in lines}.values(), key=lambda row: row["test"])
    head = HEAD.format(
        date=time.strftime("%Y-%m-%d"),
        cores=len(os.sched_getaffinity(0)),
        processor=processor(),
        python=platform.python_version(),
        torch=version("torch"),
    )
    page.write_text(head + "\n".join(map(line_of, rows)) + "\n")
    failed = [row["test"] for row in rows if not row["passed"]]
    print(f"{page}: {len(rows)} rows, {len(failed)} failed or not run", *failed, sep="\n")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
