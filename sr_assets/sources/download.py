"""One file behind a URL: brought into the cache whole and checked, or the reason why it is not.

Which URLs are wanted, and what a failure means for the run, is `url_list.py`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from filelock import FileLock

from sr_assets.sources.download_answers import (
    Failed,
    failed,
    host_of,
    kind_of,
    length,
    refusal,
    whole_after,
)
from sr_assets.sources.download_cache import Entry, Kept
from sr_assets.sources.download_connections import Connections, Exchange, session

_HEADERS = {"User-Agent": "sr-distillery", "Accept-Encoding": "identity"}
_TIMEOUT = (10.0, 15.0)  # seconds to connect, and between two pieces
_ANSWER_WITHIN = 60.0  # seconds, redirects included, until the head of an answer is there
_GRACE = 60.0  # seconds, after which a transfer may not be slower than this
_SLOWEST = 1000.0  # bytes a second
_PIECE = 1 << 18  # bytes
_REDIRECTS = 10
_ATTEMPTS = 5  # in a row that bring nothing
_ATTEMPTS_TO_CONNECT = 3
_FIRST_WAIT = 0.5  # seconds; doubled each time
_LONGEST_WAIT = 60.0
_HOST_GIVEN_UP = 3  # files in a row, after which a host is not waited for any more


class Downloads:
    """Fetches files into one folder; safe to use from several threads and processes."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._stop = threading.Event()
        self._connections = Connections()
        self._local = threading.local()
        self._given_up: Counter[str] = Counter()
        self._answered: dict[str, str] = {}  # host -> a URL

    def fetch(self, url: str, sha256: str | None) -> Kept | Failed:
        """The file behind `url`, from the cache or the network.

        Raises:
            OSError: the cache cannot be written.
        """
        entry = Entry(self._folder, url)
        with FileLock(entry.lock):
            kept = entry.kept()
            if kept and sha256 in (None, kept.sha256):
                return kept
            return self._fetch(url, entry, sha256)

    def stop(self) -> None:
        """Ends what is going on in other threads; partial files stay for the next time."""
        self._stop.set()
        self._connections.close()

    def answered(self, url: str) -> bool:
        """Whether the host of this URL, or with "" any host, has answered so far."""
        return bool(self._answered) if not url else host_of(url) in self._answered

    def still_answered(self) -> bool:
        """Whether one of the hosts that have answered does so now."""
        url = next(reversed(self._answered.values()))
        with self._connections.exchange(_ANSWER_WITHIN):
            response = self._request("HEAD", url, {})
        return not isinstance(response, Failed) or response.kind != "unreachable"

    def _fetch(self, url: str, entry: Entry, sha256: str | None) -> Kept | Failed:
        host, idle, wait = host_of(url), 0, _FIRST_WAIT
        farthest = entry.part_size()
        while True:
            if self._stop.is_set():
                return Failed("passing", "stopped")
            if self._given_up[host] >= _HOST_GIVEN_UP and host not in self._answered:
                return Failed("unreachable", f"cannot connect to {host}")
            result = self._attempt(url, entry, sha256)
            if isinstance(result, Kept) or result.kind == "final":
                self._given_up[host] = 0
                return result
            # A part that was thrown away and fetched again is no progress.
            if entry.part_size() > farthest:
                farthest, idle, wait = entry.part_size(), 0, _FIRST_WAIT
            idle += 1
            few = result.kind == "unreachable" or self._given_up[host] >= _HOST_GIVEN_UP
            if idle >= (_ATTEMPTS_TO_CONNECT if few else _ATTEMPTS):
                self._given_up[host] += 1
                return result
            self._stop.wait(min(_LONGEST_WAIT, wait if result.wait is None else result.wait))
            wait *= 2

    def _attempt(self, url: str, entry: Entry, sha256: str | None) -> Kept | Failed:
        """One request, which goes on where the last one was cut off."""
        offset, validator = entry.resumable()
        headers = {"Range": f"bytes={offset}-", "If-Range": validator} if offset else {}
        with self._connections.exchange(_ANSWER_WITHIN) as exchange:
            response = self._request("GET", url, headers)
            if isinstance(response, Failed):
                return response
            with response:
                if trouble := refusal(response):
                    if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                        entry.discard()
                        return Failed("passing", trouble.reason, 0.0)
                    return trouble
                if response.status_code == HTTPStatus.PARTIAL_CONTENT:
                    whole = whole_after(response, offset, validator)
                    if isinstance(whole, Failed):
                        entry.discard()
                        return whole
                    total: int | None = whole
                else:
                    offset, total = 0, length(response)
                if not offset:
                    entry.begin(response.headers)
                if trouble := self._receive(response, exchange, entry, offset, total):
                    return trouble
        if not entry.part_size():
            entry.discard()
            return Failed("final", "the answer is empty")
        found = entry.digest()
        if sha256 and found != sha256:
            entry.discard()
            if offset:  # the part that was there may have been wrong
                return Failed("passing", "wrong sha256 after it was resumed", 0.0)
            return Failed("final", f"sha256 is {found}, the list says {sha256}")
        return entry.keep(found, response.headers.get("Content-Type", ""))

    def _receive(
        self,
        response: requests.Response,
        exchange: Exchange,
        entry: Entry,
        offset: int,
        total: int | None,
    ) -> Failed | None:
        """Appends the body to the part, which then has `total` bytes; None when it came whole."""
        size, started = offset, time.monotonic()
        exchange.until = started + _GRACE
        with entry.part.open("ab") as writer:
            while size <= self._most and (total is None or total <= self._most):
                try:
                    piece = response.raw.read1(_PIECE, decode_content=False)
                except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                    return self._cut(exchange, f"cut off after {size} bytes: {kind_of(error)}")
                if not piece:
                    break
                writer.write(piece)
                size += len(piece)
                exchange.until = started + max(_GRACE, (size - offset) / _SLOWEST)
                if exchange.cut or time.monotonic() > exchange.until:
                    return self._cut(exchange, f"slower than {_SLOWEST:g} bytes a second")
        if size > self._most or (total is not None and total > self._most):
            entry.discard()
            much = f"{total} bytes" if total else "more bytes"
            return Failed("final", f"{much}, more than max_megabytes {self._most / 1e6:g}")
        if exchange.cut:
            return self._cut(exchange, f"cut off after {size} bytes")
        if total is not None and size < total:
            return Failed("passing", f"cut off after {size} of {total} bytes")
        if total is not None and size > total:
            entry.discard()
            return Failed("passing", f"{size} bytes came instead of {total}")
        return None

    def _cut(self, exchange: Exchange, reason: str) -> Failed:
        """Why an exchange ended before its time."""
        if self._stop.is_set():
            return Failed("passing", "stopped")
        late = exchange.cut and time.monotonic() > exchange.until
        return Failed("passing", f"slower than {_SLOWEST:g} bytes a second" if late else reason)

    def _request(
        self, method: str, url: str, headers: dict[str, str]
    ) -> requests.Response | Failed:
        """The answer at the end of the redirects; its body is not read yet."""
        for _ in range(_REDIRECTS + 1):
            try:
                response = self._session().request(
                    method,
                    url,
                    headers=headers,
                    stream=True,
                    allow_redirects=False,
                    timeout=_TIMEOUT,
                )
            except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
                return failed(error, host_of(url))
            self._answered[host_of(url)] = url
            if not response.is_redirect:
                return response
            response.close()
            target = urljoin(url, response.headers["Location"])
            if urlsplit(target).scheme not in ("http", "https"):
                return Failed("final", "redirected to something that is no http or https")
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http":
                return Failed("final", f"redirected from https to http at {host_of(target)}")
            url = target
        return Failed("final", f"redirected more than {_REDIRECTS} times")

    def _session(self) -> requests.Session:
        """One a thread: they keep connections open, and are not made to be shared."""
        if not hasattr(self._local, "session"):
            self._local.session = session()
            self._local.session.headers.update(_HEADERS)
        own: requests.Session = self._local.session
        return own
