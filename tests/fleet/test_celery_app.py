"""How a worker differs from Celery's defaults; these tests need no broker."""

import os
import signal
import socket

import pytest
from celery import signals
from celery.worker.control import Panel

from fleet.celery_app import CELERY_CONFIG as OLD_ADDRESS
from fleet.workers import celery_app, control


def test_a_worker_knows_no_order_but_those_that_were_looked_at():
    assert set(Panel.data) == control.ALLOWED | {"slots"}
    assert not {"election", "pool_grow", "add_consumer", "rate_limit"} & control.ALLOWED


def test_the_old_address_of_the_settings_still_works():
    assert OLD_ADDRESS is celery_app.CELERY_CONFIG


@pytest.fixture
def redis():
    """Both ends of a connection: the worker's (this process) and the Redis server's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        worker = socket.create_connection(server.getsockname())
        connection, _ = server.accept()
        with worker, connection:
            connection.settimeout(10)
            yield worker, connection


def test_a_process_that_takes_a_dead_ones_place_holds_no_connection_of_the_worker(redis):
    """Redis must see at once that a worker was killed: messages to a dead worker are lost."""
    worker, seen_by_redis = redis
    said, says = os.pipe()
    child = os.fork()
    if child == 0:
        signals.worker_process_init.send(sender=None)
        os.write(says, b"started")
        signal.pause()
    os.close(says)
    try:
        assert os.read(said, 7) == b"started"
        worker.close()  # the kernel does the same for a killed worker
        assert seen_by_redis.recv(1) == b""
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(said)
