"""What the answer to a request for a file means: here it is, never, or try again.

Who asks, and how often, is `download.py`.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Literal
from urllib.parse import urlsplit

import requests
import urllib3

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, *range(520, 527)})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


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


def host_of(url: str) -> str:
    """Host and port, without a password in front."""
    return urlsplit(url).netloc.rpartition("@")[2]


def length(response: requests.Response) -> int | None:
    """Bytes of the body, where the server says how many."""
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def whole_after(response: requests.Response, offset: int, validator: str) -> int | Failed:
    """Bytes of the whole file, of which an answer of status 206 brings all from `offset` on."""
    said = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    first, last, total = (int(number) for number in said.groups()) if said else (-1, -1, 0)
    if first != offset or last + 1 != total:
        # Who was not asked for a part and sends one does so again.
        kind: Literal["final", "passing"] = "passing" if offset else "final"
        return Failed(kind, "the server sent another part than was asked for", 0.0)
    strong = validator.startswith('"')
    now = response.headers.get("ETag" if strong else "Last-Modified", "" if strong else validator)
    if offset and now != validator:
        return Failed("passing", "the file changed between two parts", 0.0)
    return total


def refusal(response: requests.Response) -> Failed | None:
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


def failed(error: Exception, host: str) -> Failed:
    """A failure in words of ours: those of the libraries hold the whole URL."""
    if isinstance(error, requests.exceptions.SSLError):
        return Failed("final", f"no safe connection to {host}: its certificate is not accepted")
    if isinstance(error, requests.exceptions.ProxyError):
        return Failed("unreachable", f"cannot connect to {host} through the proxy")
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return Failed("unreachable", f"cannot connect to {host}: no answer")
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(cause, urllib3.exceptions.NewConnectionError):
        said = getattr(cause.__cause__, "strerror", None) or kind_of(cause)
        return Failed("unreachable", f"cannot connect to {host}: {said.lower()}")
    if isinstance(
        error, requests.ConnectionError | requests.Timeout | urllib3.exceptions.HTTPError
    ):
        return Failed("passing", f"{host} did not answer: {kind_of(error)}")
    return Failed("final", f"this URL cannot be requested: {kind_of(error)}")


def kind_of(error: Exception) -> str:
    """The one thing about a library's error that holds no URL."""
    return type(error).__name__
