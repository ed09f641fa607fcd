"""A line that Airflow's webserver must not log: our workers serve no logs, on purpose."""

import logging

READER = "airflow.utils.log.file_task_handler"
NOT_SERVED = "Could not read served logs"


def drop_served_logs() -> None:
    """Drop the traceback that each look at a running task's log would leave.

    Airflow 3.3.2 reads such a log from the shared folder and then asks the worker for it too. The
    setting `namespace_levels` does not reach this logger, because it is not one of structlog's.
    """
    logging.getLogger(READER).addFilter(_says_more)


def _says_more(record: logging.LogRecord) -> bool:
    return record.msg != NOT_SERVED
