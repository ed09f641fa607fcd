"""A server of one file that breaks off, as those of large files do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Plan:
    """What is served, and how."""

    def __init__(self, contents: bytes) -> None:
        self.contents = contents
        self.cuts: list[int] = []
        """After how many bytes of its answer each next request is cut off."""
        self.statuses: list[int] = []
        """With what each next request is refused."""
        self.knows_ranges = True
        self.starts: list[int] = []
        """From where each request was served."""


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"

    def do_GET(self) -> None:
        plan = self.server.plan
        if plan.statuses:
            self.send_error(plan.statuses.pop(0))
            return
        given = self.headers.get("Range", "bytes=0-") if plan.knows_ranges else "bytes=0-"
        start = int(given.removeprefix("bytes=").rstrip("-"))
        plan.starts.append(start)
        size = len(plan.contents)
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        sent = plan.contents[start:]
        self.wfile.write(sent[: plan.cuts.pop(0)] if plan.cuts else sent)

    def log_message(self, *_: object) -> None:
        """Be silent."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    plan: Plan


@contextmanager
def serving(contents: bytes) -> Iterator[tuple[str, Plan]]:
    """Serve on loopback; yields the address of the folder, and the plan."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.plan = Plan(contents)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server.plan
        finally:
            server.shutdown()
            thread.join()
