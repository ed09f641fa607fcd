"""What the containers' health checks report as healthy and unhealthy."""

import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fleet.workers import stopping


def check(
    *words: str, module: str = "fleet.workers.health", **environment: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.fixture
def port():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in ("/well", "/execution/health") else 401)
            self.end_headers()

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield str(server.server_address[1])
        server.shutdown()


def test_a_server_is_well_when_it_answers_as_it_should(port):
    assert check("http", port, "/well").returncode == 0
    assert check("http", port, "/closed", "401").returncode == 0
    refused = check("http", port, "/closed")
    assert (refused.returncode, refused.stderr) == (1, "unhealthy: the server answered 401\n")


def test_the_webserver_is_asked_below_the_path_of_its_base_url(port):
    for base, status in (("", 0), ("http://a:1", 0), ("http://a:1/", 0), ("https://a/airflow/", 1)):
        assert check("webserver", port, AIRFLOW__API__BASE_URL=base).returncode == status, base
    refused = check("webserver", port, AIRFLOW__API__BASE_URL="https://a/airflow")
    assert refused.stderr == "unhealthy: the server answered 401\n"


@pytest.mark.parametrize("module", ["fleet.workers.health", "fleet.health"])
def test_a_server_that_is_not_there_is_one_line(module):
    """The module must also work under its old name, `fleet.health`."""
    gone = check("http", "1", "/well", module=module)
    assert gone.returncode == 1
    assert gone.stderr.startswith("unhealthy: ConnectionRefusedError")
    assert len(gone.stderr.splitlines()) == 1


def test_a_worker_is_well_as_long_as_its_heartbeats_leave(tmp_path):
    file = tmp_path / "alive"
    assert "no heartbeat yet" in check("alive", FLEET_ALIVE_FILE=str(file)).stderr
    file.touch()
    assert check("alive", FLEET_ALIVE_FILE=str(file)).returncode == 0
    old = time.time() - 60
    os.utime(file, (old, old))
    assert "no heartbeat for 60 s" in check("alive", FLEET_ALIVE_FILE=str(file)).stderr


def test_a_check_costs_no_import_of_airflow():
    """A check must be cheap: ten checks run every five seconds, also on machines with two cores."""
    heavy = "{'airflow', 'celery'} & set(sys.modules)"
    words = [sys.executable, "-c", f"import fleet.workers.health, sys; assert not {heavy}"]
    assert subprocess.run(words).returncode == 0


def test_a_worker_keeps_the_folder_of_the_gpu_locks_from_being_tidied_away(tmp_path, monkeypatch):
    """systemd-tmpfiles deletes unused folders; it looks at several of a folder's time stamps."""
    os.utime(tmp_path, (0, 0))
    monkeypatch.setattr(stopping, "GPU_LOCKS", str(tmp_path))
    stopping.touch_files()
    assert time.time() - tmp_path.stat().st_mtime < 60
    assert time.time() - tmp_path.stat().st_atime < 60
    monkeypatch.setattr(stopping, "GPU_LOCKS", str(tmp_path / "none"))
    stopping.touch_files()
