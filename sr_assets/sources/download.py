"""One file behind a URL: brought into the cache whole and checked, or the reason why it is not.

Which URLs are wanted, and what a failure means for the run, is `url_list.py`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Literal
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from filelock import FileLock

from sr_assets.sources.download_cache import Entry, Kept

_HEADERS = {"User-Agent": "sr-distillery", "Accept-Encoding": "identity"}
_TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces
_SLOWEST = 1000.0  # bytes a second, once a transfer is as old as the second timeout
_PIECE = 1 << 18  # bytes
_REDIRECTS = 10
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_ATTEMPTS = 5  # in a row that bring nothing
_ATTEMPTS_TO_CONNECT = 3
_FIRST_WAIT = 0.5  # seconds; doubled each time
_LONGEST_WAIT = 60.0
_HOST_GIVEN_UP = 3  # files in a row, after which a host is not waited for any more


@dataclass(frozen=True)
class Failed:
    """Why a file was not fetched, without what may be secret in its URL.

    `final` is the answer of a server, `passing` may go away by itself, and with `unreachable`
    there was nobody at the other end.
    """

    kind: Literal["final", "passing", "unreachable"]
    reason: str
    wait: float | None = None
    """Seconds that the server asks for."""


class Downloads:
    """Fetches files into one folder; safe to use from several threads and processes."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._stop = threading.Event()
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

    def answered(self, url: str) -> bool:
        """Whether the host of this URL, or with "" any host, has answered so far."""
        return bool(self._answered) if not url else _host(url) in self._answered

    def still_answered(self) -> bool:
        """Whether one of the hosts that have answered does so now."""
        url = next(reversed(self._answered.values()))
        response = self._request("HEAD", url, {})
        return not isinstance(response, Failed) or response.kind != "unreachable"

    def _fetch(self, url: str, entry: Entry, sha256: str | None) -> Kept | Failed:
        host, idle, wait = _host(url), 0, _FIRST_WAIT
        while True:
            if self._stop.is_set():
                return Failed("passing", "stopped")
            if self._given_up[host] >= _HOST_GIVEN_UP and host not in self._answered:
                return Failed("unreachable", f"cannot connect to {host}")
            before = entry.part_size()
            result = self._attempt(url, entry, sha256)
            if isinstance(result, Kept) or result.kind == "final":
                self._given_up[host] = 0
                return result
            if entry.part_size() > before:
                idle, wait = 0, _FIRST_WAIT
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
        response = self._request("GET", url, headers)
        if isinstance(response, Failed):
            return response
        with response:
            if failed := _refusal(response):
                if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    entry.discard()
                    return Failed("passing", failed.reason, 0.0)
                return failed
            if response.status_code == HTTPStatus.PARTIAL_CONTENT:
                if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                    entry.discard()
                    return Failed("passing", "the server sent another part than was asked for")
            else:
                offset = 0
                entry.begin(response.headers)
            if failed := self._receive(response, entry, offset):
                return failed
        found = entry.digest()
        if sha256 and found != sha256:
            entry.discard()
            if offset:  # the part that was there may have been wrong
                return Failed("passing", "wrong sha256 after it was resumed", 0.0)
            return Failed("final", f"sha256 is {found}, the list says {sha256}")
        return entry.keep(found, response.headers.get("Content-Type", ""))

    def _receive(self, response: requests.Response, entry: Entry, offset: int) -> Failed | None:
        """Appends the body to the part; None when it came whole."""
        length = response.headers.get("Content-Length", "")
        total = offset + int(length) if length.isdecimal() else None
        size, started = offset, time.monotonic()
        with entry.part.open("ab") as writer:
            while size <= self._most and (total is None or total <= self._most):
                try:
                    piece = response.raw.read1(_PIECE, decode_content=False)
                except (urllib3.exceptions.HTTPError, OSError) as error:
                    return Failed("passing", f"cut off after {size} bytes: {_kind(error)}")
                if not piece:
                    cut = total is not None and size != total
                    reason = f"cut off after {size} of {total} bytes"
                    return Failed("passing", reason) if cut else None
                writer.write(piece)
                size += len(piece)
                elapsed = time.monotonic() - started
                if elapsed > _TIMEOUT[1] and size - offset < _SLOWEST * elapsed:
                    return Failed("passing", f"slower than {_SLOWEST:g} bytes a second")
                if self._stop.is_set():
                    return Failed("passing", "stopped")
        entry.discard()
        much = f"{total} bytes" if total else "more bytes"
        return Failed("final", f"{much}, more than max_megabytes {self._most / 1e6:g}")

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
                return _failed(error, _host(url))
            self._answered[_host(url)] = url
            if not response.is_redirect:
                return response
            response.close()
            target = urljoin(url, response.headers["Location"])
            if urlsplit(target).scheme not in ("http", "https"):
                return Failed("final", "redirected to something that is no http or https")
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http":
                return Failed("final", f"redirected from https to http at {_host(target)}")
            url = target
        return Failed("final", f"redirected more than {_REDIRECTS} times")

    def _session(self) -> requests.Session:
        """One a thread: they keep connections open, and are not made to be shared."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            self._local.session.headers.update(_HEADERS)
        session: requests.Session = self._local.session
        return session


def _host(url: str) -> str:
    """Host and port, without a password in front."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _refusal(response: requests.Response) -> Failed | None:
    """What an answer says other than: here it is."""
    status = response.status_code
    if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        encoding = response.headers.get("Content-Encoding", "identity")
        plain = encoding.strip().lower() in ("", "identity")
        return None if plain else Failed("final", f"sent as {encoding[:20]} though not asked to")
    try:
        reason = f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        reason = f"HTTP {status}"
    if status in _PASSING:
        return Failed("passing", reason, _retry_after(response.headers.get("Retry-After", "")))
    return Failed("final", reason)


def _retry_after(value: str) -> float | None:
    """Seconds that a server asks for, in seconds or as a date."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _failed(error: Exception, host: str) -> Failed:
    """A failure in words of ours: those of the libraries hold the whole URL."""
    if isinstance(error, requests.exceptions.SSLError):
        return Failed("final", f"no safe connection to {host}: its certificate is not accepted")
    if isinstance(error, requests.exceptions.ProxyError):
        return Failed("unreachable", f"cannot connect to {host} through the proxy")
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return Failed("unreachable", f"cannot connect to {host}: no answer")
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(cause, urllib3.exceptions.NewConnectionError):
        said = getattr(cause.__cause__, "strerror", None) or _kind(cause)
        return Failed("unreachable", f"cannot connect to {host}: {said.lower()}")
    if isinstance(
        error, requests.ConnectionError | requests.Timeout | urllib3.exceptions.HTTPError
    ):
        return Failed("passing", f"{host} did not answer: {_kind(error)}")
    return Failed("final", f"this URL cannot be requested: {_kind(error)}")


def _kind(error: Exception) -> str:
    return type(error).__name__
