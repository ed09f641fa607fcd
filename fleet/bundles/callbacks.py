"""Works around a fault of Airflow 3.3.2: a DAG file is parsed without pause after a callback.

The dag-processor runs the callbacks of a DAG from Git with the version of the run. It then has a
second record of the file, with that version and without the time of a parse. From then on it never
counts the file as parsed recently. So this module deletes such records. A test in
tests/fleet/test_callbacks.py fails when Airflow no longer needs this module.
"""

import functools
from typing import Any

from airflow.dag_processing.manager import DagFileProcessorManager


@functools.cache
def forget_callbacks() -> None:
    """Make the dag-processor of this process forget files that it opened only for callbacks."""
    handle = DagFileProcessorManager.handle_parsing_result

    @functools.wraps(handle)
    def then_forget(self: Any, file: Any, proc: Any, *rest: Any, **options: Any) -> None:
        handle(self, file, proc, *rest, **options)
        if file.bundle_version is not None:
            self._file_stats.pop(file, None)

    DagFileProcessorManager.handle_parsing_result = then_forget  # type: ignore[method-assign]
