"""A hub on localhost for the real client: datasets in memory, and the faults that a hub has.

It speaks as much of the protocol as huggingface_hub uses to list and fetch a dataset: revisions,
paged trees, resolve with etags and ranges, and large files behind a redirect to another host.
Model repositories, which can be written too, are `hub_models.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_models import ModelHub, ModelRefusalError


@dataclass(frozen=True)
class Request:
    """One request that arrived; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass
class _RefusalError(Exception):
    status: int
    code: str = ""
    message: str = ""


class HubServer:
    """Datasets by name, what was asked of them, and switches for what goes wrong."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.models: set[str] = set()
        self.gated: set[str] = set()
        self.private: dict[str, str] = {}
        """Repository -> the token that opens it."""
        self.busy = 0
        """So many requests are answered with 429."""
        self.down = False
        """Whether every request is answered with 503."""
        self.refusals: dict[str, int] = {}
        """Words in the path of a request -> the status that it is answered with."""
        self.signature = ""
        """Query of the addresses to which requests for large files are sent."""
        self.cut: dict[str, list[int]] = {}
        """Path of a file -> after how many bytes its next transfers end."""
        self.damaged: Counter[str] = Counter()
        """Path of a file -> how many transfers of it come with a wrong byte."""
        self.page = 1000
        """Files on one page of a listing."""
        self.models_hub = ModelHub(lambda: self.url)
        """Model repositories."""
        self.interrupt: dict[str, Callable[[], object]] = {}
        """`METHOD words` -> called when the first such request arrives, which gets no answer."""
        self._commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self._revisions: dict[tuple[str, str], str] = {}
        self._stored: dict[str, tuple[str, bytes]] = {}
        self._large = (".png", ".jpg", ".parquet", ".tar")
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        hub = self

        class Handler(_Handler):
            server_of = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Nobody answers under this address until `start`."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def commit(self, repo: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Puts a branch at a new commit with exactly these files; returns its id."""
        listing = [(path, hashlib.sha256(data).hexdigest()) for path, data in sorted(files.items())]
        sha = hashlib.sha1(json.dumps([repo, listing]).encode()).hexdigest()
        self._commits[repo, sha] = dict(files)
        self._revisions[repo, branch] = sha
        for path, data in files.items():
            if self._is_large(path):
                self._stored[hashlib.sha256(data).hexdigest()] = (path, data)
        return sha

    def asked(self, words: str) -> list[Request]:
        """The requests whose path contains `words`."""
        return [request for request in self.requests if words in request.path]

    def _is_large(self, path: str) -> bool:
        return path.endswith(self._large)

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes, str]:
        """(status, headers, body, path of the file that the body is)."""
        url = urlsplit(request.path)
        if self.down:
            raise _RefusalError(503)
        for words, call in list(self.interrupt.items()):
            method, _, part = words.partition(" ")
            if method == request.method and part in request.path:
                del self.interrupt[words]
                call()
                raise ConnectionAbortedError
        for words, status in self.refusals.items():
            if words in request.path:
                raise _RefusalError(status)
        with self._lock:
            if self.busy:
                self.busy -= 1
                raise _RefusalError(429)
        try:
            if (about_models := self.models_hub.answer(request)) is not None:
                return about_models
        except ModelRefusalError as error:
            raise _RefusalError(error.status, error.code, error.message) from None
        if match := re.fullmatch(r"/store/([0-9a-f]{64})", url.path):
            path, data = self._stored[match[1]]
            return 200, {"ETag": f'"{match[1]}"'}, data, path
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", url.path):
            if match[1] not in self.models:
                raise _RefusalError(404, "RepoNotFound")
            return 200, {}, json.dumps({"id": match[1], "sha": "0" * 40}).encode(), ""
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/revision/([^/]+)", url.path):
            sha, _ = self._at(request, match[1], match[2])
            return 200, {}, json.dumps({"id": match[1], "sha": sha}).encode(), ""
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)", url.path):
            _, files = self._at(request, match[1], match[2])
            return self._tree(url.path, parse_qs(url.query), files)
        if match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url.path):
            sha, files = self._at(request, match[1], match[2], content=True)
            return self._resolve(sha, files, unquote(match[3]))
        raise _RefusalError(404)

    def _at(
        self, request: Request, repo: str, revision: str, *, content: bool = False
    ) -> tuple[str, dict[str, bytes]]:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if repo in self.private and token != self.private[repo]:
            raise _RefusalError(401, message="Invalid username or password.")
        if content and repo in self.gated:
            raise _RefusalError(403, "GatedRepo", f"Access to dataset {repo} is restricted.")
        if not any(name == repo for name, _ in self._commits):
            raise _RefusalError(404, "RepoNotFound", "Repository not found")
        revision = unquote(revision)
        sha = self._revisions.get((repo, revision), revision)
        if (repo, sha) not in self._commits:
            raise _RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, self._commits[repo, sha]

    def _tree(
        self, path: str, query: dict[str, list[str]], files: dict[str, bytes]
    ) -> tuple[int, dict[str, str], bytes, str]:
        start = int(query.get("cursor", ["0"])[0])
        folders = {name.rpartition("/")[0] for name in files} - {""}
        rows: list[dict[str, Any]] = [
            {"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders
        ]
        rows += [self._row(name, data) for name, data in files.items()]
        rows.sort(key=lambda row: row["path"])
        headers = {}
        if start + self.page < len(rows):
            following = f"{self.url}{path}?recursive=true&cursor={start + self.page}"
            headers["Link"] = f'<{following}>; rel="next"'
        return 200, headers, json.dumps(rows[start : start + self.page]).encode(), ""

    def _row(self, path: str, data: bytes) -> dict[str, Any]:
        row = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
        if self._is_large(path):
            sha256 = hashlib.sha256(data).hexdigest()
            row["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
        return row

    def _resolve(
        self, sha: str, files: dict[str, bytes], path: str
    ) -> tuple[int, dict[str, str], bytes, str]:
        if path not in files:
            raise _RefusalError(404, "EntryNotFound", "Entry not found")
        data, headers = files[path], {"X-Repo-Commit": sha}
        if not self._is_large(path):
            return 200, headers | {"ETag": f'"{git_sha1(data)}"'}, data, path
        digest = hashlib.sha256(data).hexdigest()
        # Another name of this machine: to the client another host, which must not see the token.
        headers |= {
            "Location": f"http://localhost:{self._port}/store/{digest}{self.signature}",
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(data)),
        }
        return 302, headers, b"", path


class _Handler(BaseHTTPRequestHandler):
    server_of: HubServer

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        hub = self.server_of
        headers_in = {k.lower(): v for k, v in self.headers.items()}
        request = Request(self.command, self.path, headers_in, self._body(headers_in))
        hub.requests.append(request)
        try:
            status, headers, body, path = hub.answer(request)
        except _RefusalError as refusal:
            status, path = refusal.status, ""
            headers = {"Retry-After": "0"} if status in (429, 503) else {}
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
            headers |= {"X-Error-Message": refusal.message} if refusal.message else {}
            body = json.dumps({"error": refusal.message or "no"}).encode()
        except ConnectionAbortedError:
            self.close_connection = True
            return
        span = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if status == 200 and span:
            status, start = 206, int(span[1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body = body[start:]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, quote(value, safe="/:?=&;,<>\"' .-"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and body:
            self._send(body, path if status in (200, 206) else "")

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "") != "chunked":
            return self.rfile.read(int(headers.get("content-length", "0")))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, body: bytes, path: str) -> None:
        hub = self.server_of
        with hub._lock:
            if hub.damaged[path] > 0:
                hub.damaged[path] -= 1
                body = bytes([body[0] ^ 1]) + body[1:]
            cuts = hub.cut.get(path)
            if cuts:
                body = body[: cuts.pop(0)]
        self.wfile.write(body)


def git_sha1(data: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
