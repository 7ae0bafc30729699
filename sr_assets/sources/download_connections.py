"""Connections that can be cut off from another thread: when they are too slow, or on Ctrl-C.

A socket's own timeout begins again with every byte, so it ends nothing that drips. What is asked
for over a connection is `download.py`.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

_LOOK_EVERY = 0.25  # seconds

_running = threading.local()
"""Of a thread: the exchange that it is in."""


@dataclass
class Exchange:
    """One attempt to fetch one file, which goes over one connection after the other."""

    until: float
    """By `time.monotonic`; whoever makes progress moves it."""
    cut: bool = False
    _socket: socket.socket | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def uses(self, opened: socket.socket | None) -> None:
        """Notes the socket that is waited for now."""
        with self._lock:
            self._socket = opened
            if self.cut:
                self._shut()

    def end(self) -> None:
        """Has whoever waits for the socket find it closed; from any thread."""
        with self._lock:
            self.cut = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                # Not the method of a TLS socket, which takes the keys away from the reader too.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Connections:
    """Ends exchanges that are late, and all of them on request."""

    def __init__(self) -> None:
        self._exchanges: dict[int, Exchange] = {}
        self._changed = threading.Condition()
        self._closed = False

    @contextmanager
    def exchange(self, seconds: float) -> Iterator[Exchange]:
        """What this thread sends and receives inside is cut off when it takes longer."""
        exchange = Exchange(time.monotonic() + seconds)
        with self._changed:
            if not self._exchanges:
                threading.Thread(target=self._watch, name="downloads", daemon=True).start()
            self._exchanges[id(exchange)] = exchange
            if self._closed:
                exchange.end()
        _running.exchange = exchange
        try:
            yield exchange
        finally:
            _running.exchange = None
            with self._changed:
                del self._exchanges[id(exchange)]
                self._changed.notify_all()

    def close(self) -> None:
        """Cuts off all that is going on, and whatever would begin."""
        with self._changed:
            self._closed = True
            for exchange in self._exchanges.values():
                exchange.end()

    def _watch(self) -> None:
        """Runs while there are exchanges."""
        with self._changed:
            while self._exchanges:
                now = time.monotonic()
                for exchange in self._exchanges.values():
                    if now > exchange.until and not exchange.cut:
                        exchange.end()
                self._changed.wait(_LOOK_EVERY)


def session() -> requests.Session:
    """A session whose sockets are known to the exchange of the thread that uses them."""
    made = requests.Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, _Adapter())
    return made


class _Answering:
    """Mixed into a connection: tells the exchange which socket is about to be read."""

    sock: socket.socket | None

    def getresponse(self) -> Any:
        exchange = getattr(_running, "exchange", None)
        if exchange is not None:
            exchange.uses(self.sock)
        return super().getresponse()  # type: ignore[misc]


class _Http(_Answering, urllib3.connection.HTTPConnection):
    pass


class _Https(_Answering, urllib3.connection.HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Https


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        return manager
