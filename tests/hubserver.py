"""A small hub on the loopback interface: the routes by which files are read and written.

What the real hub answers, as far as its client looks at it: HEAD and GET of
``/<repo>/resolve/<revision>/<file>`` with etag, commit and size, large files behind a redirect,
byte ranges, error codes in headers; and the routes that make a repository and a commit. Faults can
be ordered for any path.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = 1000  # bytes from which on a file is behind a redirect

Fault = Callable[["Handler"], bool]


@dataclasses.dataclass
class Repo:
    """One repository: the files of its commits, newest last, and who may read it."""

    commits: list[dict[str, bytes]]
    gated: bool = False
    token: str = ""

    def sha(self, number: int) -> str:
        digest = hashlib.sha1(str(number).encode())
        for name, content in sorted(self.commits[number].items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        for number in reversed(range(len(self.commits))):
            if revision in (self.sha(number), "main" if number == len(self.commits) - 1 else ""):
                return self.sha(number), self.commits[number]
        return None


class Hub(ThreadingHTTPServer):
    """The server; ``log`` has (method, path) of every request, ``faults`` what to do instead.

    ``slow`` is how many seconds it waits in the middle of a body.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.faults: list[tuple[str, str, Fault]] = []
        self.slow = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repo:
        self.repos[name] = Repo([dict(files)], **options)
        return self.repos[name]

    def fail(self, method: str, pattern: str, fault: Fault, *, times: int = 1) -> None:
        """Order a fault for the next ``times`` requests of this method whose path matches."""
        self.faults += [(method, pattern, fault)] * times

    def count(self, method: str, pattern: str) -> int:
        return sum(m == method and re.search(pattern, p) is not None for m, p in self.log)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of ours."""


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A hub that serves until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def status(code: int, **headers: str) -> Fault:
    """Answer with a status."""

    def fault(handler: Handler) -> bool:
        handler.answer(code, b"", {k.replace("_", "-"): v for k, v in headers.items()})
        return True

    return fault


def cut(after: int) -> Fault:
    """Break the connection after so many bytes of the body."""

    def fault(handler: Handler) -> bool:
        handler.cut_after = after
        return False

    return fault


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Hub
    protocol_version = "HTTP/1.1"
    cut_after: int | None = None

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut_after is not None and self.cut_after < len(body):
            self.wfile.write(body[: self.cut_after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        half = len(body) // 2
        self.wfile.write(body[:half])
        if self.server.slow and body:
            self.wfile.flush()
            threading.Event().wait(self.server.slow)
        self.wfile.write(body[half:])

    def handle_any(self) -> None:
        self.cut_after = None
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = self.read_chunks()
        self.server.log.append((self.command, self.path))
        for order in self.server.faults:
            if order[0] == self.command and re.search(order[1], self.path):
                self.server.faults.remove(order)
                if order[2](self):
                    return
                break
        path = self.path.partition("?")[0]
        for pattern, method in ROUTES:
            found = re.fullmatch(pattern, path)
            if found:
                method(self, *found.groups())
                return
        self.answer(404, b"")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # LevelReader

    def allowed(self, name: str) -> Repo | None:
        repo = self.server.repos.get(name)
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.token and not repo.gated and given != repo.token):
            self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        if repo.gated and given != repo.token:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            return None
        return repo

    def resolve(self, name: str, revision: str, file: str) -> None:
        repo = self.allowed(name)
        if repo is None:
            return
        found = repo.at(revision)
        if found is None:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        sha, files = found
        if file not in files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        body = files[file]
        etag = hashlib.sha256(body).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if len(body) >= LARGE:
            self.server.blobs[etag] = body
            headers |= {
                "X-Linked-Etag": f'"{etag}"',
                "X-Linked-Size": str(len(body)),
                # another host, as the real one's: the client follows what stays on its own
                "Location": f"http://localhost:{self.server.server_address[1]}/cdn/{etag}",
            }
            self.answer(302, b"", headers)
        else:
            self.send_body(body, headers)

    def cdn(self, etag: str) -> None:
        self.send_body(self.server.blobs[etag], {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"})

    def send_body(self, body: bytes, headers: dict[str, str]) -> None:
        if self.command == "HEAD":
            self.answer(200, b"", {**headers, "Content-Length": str(len(body))})
            return
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            self.answer(200, body, headers)
            return
        start, stop = int(span[1]), int(span[2] or len(body) - 1)
        headers["Content-Range"] = f"bytes {start}-{stop}/{len(body)}"
        self.answer(206, body[start : stop + 1], headers)

    # Writing

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = "/".join(filter(None, [wanted.get("organization"), wanted["name"]]))
        if self.headers.get("Authorization") != "Bearer writer":
            self.answer(
                401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"}
            )
            return
        self.server.repos.setdefault(name, Repo([{}]))
        self.json({"url": f"{self.server.url}/{name}", "name": name})

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def info(self, name: str, revision: str = "main") -> None:
        repo = self.allowed(name)
        if repo is not None:
            sha = repo.sha(len(repo.commits) - 1)
            siblings = [{"rfilename": file} for file in repo.commits[-1]]
            self.json({"id": name, "sha": sha, "siblings": siblings, "tags": [], "_id": "1"})

    def validate(self) -> None:
        self.json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        files = json.loads(self.body)["files"]
        modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
        self.json({"files": modes})

    def commit(self, name: str, revision: str) -> None:
        repo = self.server.repos[name]
        files = dict(repo.commits[-1])
        for line in self.body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        repo.commits.append(files)
        sha = repo.sha(len(repo.commits) - 1)
        self.json({"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha})


ROUTES: list[tuple[str, Any]] = [
    (r"/cdn/(\w+)", Handler.cdn),
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", Handler.preupload),
    (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", Handler.commit),
    (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", Handler.info),
    (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.resolve),
]
