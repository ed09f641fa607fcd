"""The lines that are left out of the webserver's log."""

import inspect
import logging

import pytest
from airflow.utils.log import file_task_handler

from fleet import logs


@pytest.fixture
def reader():
    logs.drop_served_logs()
    logger = logging.getLogger(logs.READER)
    yield logger
    for each in list(logger.filters):
        logger.removeFilter(each)


def test_that_one_line_is_dropped_and_others_are_not(reader, caplog):
    reader.error(logs.NOT_SERVED)
    reader.error("Error reading log stream: %s", "x")
    assert caplog.messages == ["Error reading log stream: x"]


def test_airflow_still_says_it_so():
    """If this fails, Airflow has changed or dropped the line: fleet/logs.py may be obsolete."""
    assert f'logger.exception("{logs.NOT_SERVED}")' in inspect.getsource(file_task_handler)
    assert file_task_handler.logger.name == logs.READER
    assert isinstance(file_task_handler.logger, logging.Logger)
