"""What the hub answers: requests that it puts off are repeated, refusals become one line.

What is asked for is `hub_client.py`.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from sr_assets.lineage.stage import StageError

T = TypeVar("T")

_TRIES = 4  # of a request that the hub puts off, on top of the client's own
_LONGEST_WAIT = 300.0  # seconds; a hub that asks for more is given up
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, *range(520, 527)})
_ADDRESS = re.compile(r"(https?://)([^\s'\"<>]*)")
_QUERY = re.compile(r"\?[\w.-]+=[^\s'\"<>)]*")  # of an address that was shortened
_HTTP_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


class Unreachable(Exception):  # noqa: N818 - an answer that did not come
    """No answer, or one that says that the hub is down."""


class Damaged(Exception):  # noqa: N818 - a verdict of the client on what it received
    """The client itself noticed that a file is not what was announced."""


@dataclass(frozen=True)
class Site:
    """A dataset repository and the way to it, as the environment has it now."""

    repo: str
    revision: str
    where: str
    """Field of the recipe, for messages."""
    log: Callable[[str], None]
    endpoint: str
    token: str | Literal[False]
    """False, not None: the client would look for a stored login."""
    offline: bool

    def api(self) -> Any:
        """The client."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token)

    def ask(self, request: Callable[[], T]) -> T:
        """The answer; waits where the hub asks for that.

        Raises:
            StageError: the hub refuses, or the disk is full.
            Unreachable: there is no answer.
            Damaged: the client dropped what it received.
        """
        for attempt in range(_TRIES):
            try:
                return request()
            except Exception as raised:  # the client's HTTP libraries share no base class
                error = _behind(raised)
                wait = _wait(error, attempt)
                if wait is None or attempt + 1 == _TRIES:
                    # Not from it: a traceback would show the signed address of a file.
                    raise self._verdict(error) from None
                self.log(f"{self.where}: the hub is busy; the next try is in {wait:.0f} s")
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _verdict(self, error: Exception) -> Exception:
        """What an error of the client means, as ours."""
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RevisionNotFoundError,
        )

        status, where, page = _status(error), self.where, f"{self.endpoint}/datasets/{self.repo}"
        if isinstance(error, GatedRepoError):
            return StageError(
                f"{where}.repo: {self.repo} is gated: accept its terms at {page} and set HF_TOKEN "
                "to a token of that account"
            )
        if isinstance(error, RevisionNotFoundError):
            return StageError(
                f"{where}.revision: {self.repo} has no commit, tag or branch {self.revision!r}; "
                f"see {page}/tree/main"
            )
        if status in (401, 403):
            mend = (
                "its token has no access; check HF_TOKEN"
                if self.token
                else "it is private or does not exist: mend the name or set HF_TOKEN"
            )
            return StageError(f"{where}.repo: the hub refuses {self.repo} ({status}): {mend}")
        if status == 404:
            return StageError(f"{where}.repo: {self._absent()}")
        if status == 429:
            return StageError(
                f"{where}: the hub wants fewer requests, still after {_TRIES} tries: build again "
                "later (what was fetched stays), or set HF_TOKEN"
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StageError(
                f"{where}: disk full while {self.repo} was fetched to {hub_cache()}: free space "
                "there or set HF_HOME to another disk, and build again"
            )
        if isinstance(error, LocalEntryNotFoundError):
            return Unreachable("HF_HUB_OFFLINE is set" if self.offline else "no connection")
        if status >= 500 or status in _PASSING:
            return Unreachable(f"it answers {status}")
        if 300 <= status < 400:
            return StageError(
                f"{where}.repo: the hub sends {self.repo} elsewhere ({status}), as when a "
                f"repository was renamed: see {page} and name it as it is now"
            )
        if status >= 400:
            return StageError(
                f"{where}: the hub or its storage refuses a request for {self.repo} ({status}): "
                f"{_first_line(error)}"
            )
        library = type(error).__module__.split(".")[0]
        if isinstance(error, ConnectionError | TimeoutError) or library in _HTTP_LIBRARIES:
            return Unreachable(_first_line(error))
        if type(error) is OSError and error.errno is None:  # fewer or more bytes than announced
            # Its words end with a piece of the signed address.
            return Damaged("it is of another size than was announced")
        if isinstance(error, KeyError | TypeError | AttributeError | ValueError):
            return StageError(
                f"{where}: {self.endpoint} answers for {self.repo} as no hub does "
                f"({_first_line(error)}): check HF_ENDPOINT, and at {page} that it was not renamed"
            )
        return StageError(f"{where}: {self.repo} cannot be fetched: {_first_line(error)}")

    def _absent(self) -> str:
        for kind in ("model", "space"):
            try:
                there = self.api().repo_exists(self.repo, repo_type=kind)
            except Exception:  # only for the message: what failed has been found out already
                there = False
            if there:
                return f"{self.repo} is a {kind}, not a dataset: name a dataset repository"
        return f"there is no dataset {self.repo} at {self.endpoint}: mend the name"


def site_of(repo: str, revision: str, where: str, log: Callable[[str], None]) -> Site:
    """The site that the environment names: HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE."""
    return Site(
        repo=repo,
        revision=revision,
        where=where,
        log=log,
        endpoint=(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"),
        token=os.environ.get("HF_TOKEN", "").strip() or False,
        offline=os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"},
    )


@contextmanager
def silent_client() -> Iterator[None]:
    """No bars and warnings of the client's own.

    Several threads would draw over ours, and the warnings hold the signed addresses of files.
    """
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    before = are_progress_bars_disabled()
    disable_progress_bars()
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", *sorted(_HTTP_LIBRARIES))]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not before:
            enable_progress_bars()


def hub_cache() -> Path:
    """The cache that the client would use, read when it is wanted and not at import."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser() / below
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def _behind(error: Exception) -> Exception:
    """The error that the client's own words stand for."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    # A forced download that fails is a ValueError.
    while isinstance(error, LocalEntryNotFoundError | ValueError) and isinstance(
        error.__cause__, Exception
    ):
        error = error.__cause__
    return error


def _status(error: Exception) -> int:
    """HTTP status that an error was raised for; 0 where there was no answer."""
    return int(getattr(getattr(error, "response", None), "status_code", None) or 0)


def _wait(error: Exception, attempt: int) -> float | None:
    """Seconds until a request may be repeated; None when that is no use."""
    status = _status(error)
    if status not in _PASSING:
        return None
    headers = getattr(error, "response").headers  # noqa: B009 - mypy knows no such attribute
    asked = headers.get("Retry-After", "")
    seconds = float(asked) if asked.isdigit() else 2.0**attempt
    return seconds if seconds <= _LONGEST_WAIT else None


def _first_line(error: Exception) -> str:
    lines = without_secrets(str(error)).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def without_secrets(text: str) -> str:
    """A text with the user, the query and the fragment of each address taken out.

    >>> without_secrets("410 for 'https://me:pw@host/file?X-Amz-Signature=1'")
    "410 for 'https://host/file'"
    """

    def bare(address: re.Match[str]) -> str:
        place = re.split(r"[?#]", address[2], maxsplit=1)[0]
        host, slash, path = place.partition("/")
        return f"{address[1]}{host.rpartition('@')[2]}{slash}{path}"

    return _QUERY.sub("", _ADDRESS.sub(bare, text))
