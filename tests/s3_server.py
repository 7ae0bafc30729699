"""An S3 server on localhost (moto's own) that notes every request; the environment names it.

It keeps objects in memory: what a test flips or deletes, it flips and deletes in the bucket.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import pytest

_numbers = itertools.count(1)


@dataclass
class S3Server:
    """The server, with a bucket for the test, and what it was asked."""

    url: str
    bucket: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and query string of each request, oldest first."""
    refuse: Callable[[str, str], bool] = lambda method, path: False
    """Whether a request (method, path) is refused with 403."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @functools.cached_property
    def client(self) -> Any:
        """boto3's own client; what it asks is noted, too."""
        import boto3

        return boto3.client("s3", endpoint_url=self.url)

    def counts(self) -> dict[str, int]:
        """How many requests of each kind there were since the last call (LIST is a GET)."""
        with self._lock:
            kinds = Counter(_kind(method, query) for method, _, query in self.asked)
            self.asked.clear()
        return dict(kinds)

    @contextmanager
    def unnoted(self) -> Iterator[Any]:
        """A client whose requests are not noted."""
        before = list(self.asked)
        yield self.client
        self.asked[:] = before

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Key and content of every object below `prefix`."""
        with self.unnoted() as client:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix
            )
            keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
            return {
                key: client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys
            }

    def put(self, key: str, data: bytes) -> None:
        """Writes one object, as somebody else would."""
        with self.unnoted() as client:
            client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def delete(self, key: str) -> None:
        """Deletes one object, as somebody else would."""
        with self.unnoted() as client:
            client.delete_object(Bucket=self.bucket, Key=key)

    def application(self, app: Any) -> Any:
        """The WSGI application `app`, every request of which is noted."""

        def noting(environ: dict[str, Any], start: Any) -> Any:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            with self._lock:
                self.asked.append((method, path, environ["QUERY_STRING"]))
            if self.refuse(method, path):
                start("403 Forbidden", [("Content-Type", "application/xml")])
                return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
            return app(environ, start)

        return noting


def _kind(method: str, query: str) -> str:
    return "LIST" if method == "GET" and "list-type" in parse_qs(query) else method


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The server of a test session."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra s3)")
    threaded = pytest.importorskip("moto.moto_server.threaded_moto_server")
    found = S3Server("")
    serve = threaded.make_server

    def noting(host: str, port: int, app: Any, *args: Any, **kwargs: Any) -> Any:
        return serve(host, port, found.application(app), *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threaded, "make_server", noting)
        server = threaded.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
    host, port = server.get_host_and_port()
    found.url = f"http://{host}:{port}"
    yield found
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server with an empty bucket; the AWS_* variables name it and nothing else."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    s3_server.bucket = f"srd-test-{next(_numbers)}"
    s3_server.refuse = lambda method, path: False  # of an earlier test
    s3_server.client.create_bucket(Bucket=s3_server.bucket)
    s3_server.counts()
    return s3_server
