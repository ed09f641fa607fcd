"""Hide an expected error in the webserver's log: workers do not serve logs, by design."""

import logging

READER = "airflow.utils.log.file_task_handler"
NOT_SERVED = "Could not read served logs"


def drop_served_logs() -> None:
    """Drop the traceback that is logged whenever somebody opens a running task's log.

    Airflow 3.3.2 reads such a log from the shared folder, and then also requests the log from the
    worker, which fails. A filter drops the traceback, because the setting `namespace_levels` has no
    effect on this logger: it is not a structlog logger.
    """
    logging.getLogger(READER).addFilter(_says_more)


def _says_more(record: logging.LogRecord) -> bool:
    return record.msg != NOT_SERVED
