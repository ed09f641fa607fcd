"""Git's own HTTP backend behind a server that requires a user and a token, as Git hosts do."""

import base64
import os
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LOGIN = "user:t0ken"
BACKEND = f"{subprocess.check_output(['git', '--exec-path'], text=True).strip()}/git-http-backend"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        body = self._body()
        given = self.headers.get("Authorization", "").partition(" ")[2]
        if base64.b64decode(given) != self.server.login.encode():
            self._answer("401 Unauthorized", {"WWW-Authenticate": 'Basic realm="git"'}, b"")
        elif self.server.read_only and "git-receive-pack" in self.path:
            self._answer("403 Forbidden", {}, b"")
        else:
            head, _, rest = self._run(address, body).partition(b"\r\n\r\n")
            lines = (line.split(": ", 1) for line in head.decode().splitlines())
            headers = dict(lines)
            self._answer(headers.pop("Status", "200 OK"), headers, rest)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while n_bytes := int(self.rfile.readline(), 16):
            body += self.rfile.read(n_bytes)
            self.rfile.readline()
        return body

    def _run(self, address: urllib.parse.SplitResult, body: bytes) -> bytes:
        variables = {
            "GIT_PROJECT_ROOT": str(self.server.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": address.path,
            "QUERY_STRING": address.query,
            "REQUEST_METHOD": self.command,
            "REMOTE_USER": "user",
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        ended = subprocess.run(
            [BACKEND], input=body, env={**os.environ, **variables}, capture_output=True, check=True
        )
        return ended.stdout

    def _answer(self, status: str, headers: dict[str, str], body: bytes) -> None:
        code, _, reason = status.partition(" ")
        self.send_response(int(code), reason)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    folder: Path
    login: str
    read_only: bool


@contextmanager
def serving(folder: Path, login: str, *, read_only: bool = False, port: int = 0) -> Iterator[str]:
    """Serve a folder's repositories on loopback to `login` (user:token); yields the address."""
    with _Server(("127.0.0.1", port), _Handler) as server:
        server.folder, server.login, server.read_only = folder, login, read_only
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Host:
    """The folder of a Git host with the repository dags.git, and an author's clone of it."""

    def __init__(self, folder: Path) -> None:
        self.bare, self.work = folder / "hosted" / "dags.git", folder / "work"
        folder.mkdir(exist_ok=True)
        self.git("init", "-q", "--bare", "-b", "main", self.bare, where=folder)
        self.git("clone", "-q", self.bare, self.work, where=folder)

    def git(self, *words: object, where: Path | None = None) -> None:
        own = ("-c", "user.name=author", "-c", "user.email=author@localhost")
        command = ["git", *own, *map(str, words)]
        subprocess.run(command, cwd=where or self.work, check=True, capture_output=True)

    def push(self, name: str, text: str) -> None:
        """Write a file, commit it and push it to the branch main."""
        (self.work / name).parent.mkdir(exist_ok=True)
        (self.work / name).write_text(text)
        self.git("add", "-A")
        self.git("commit", "-qm", name)
        self.git("push", "-q", "origin", "HEAD:main")
