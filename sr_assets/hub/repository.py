"""One model repository on a hub: what is asked of it, and what its refusals mean.

What a release is there is the business of `publishing.py` and `pulling.py`. Datasets are fetched by
`sources/hub_client.py`.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from sr_assets.lineage.stage import StageError
from sr_assets.sources.hub_answers import hub_cache, without_secrets
from sr_assets.stores.versions import Version, parse_version

T = TypeVar("T")

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_BUSY = frozenset({429, 500, 502, 503, 504})
_TRIES = 3  # of a request that only reads
_HTTP_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


class AbsentError(Exception):
    """There is no such repository, or none that the token may see."""


class UnreachableError(Exception):
    """No answer, or one that says that the hub is down."""


@dataclass(frozen=True)
class Entry:
    """One file of a commit; `sha256` is empty unless it is stored outside git."""

    size: int
    git_sha1: str
    sha256: str

    def holds(self, size: int, sha256: str) -> bool:
        """Whether it can be a file of that size and digest, as far as the listing tells."""
        return self.size == size and self.sha256 in ("", sha256)

    def is_of(self, data: bytes) -> bool:
        """Whether it is the file of this content."""
        if self.sha256:
            return self.sha256 == hashlib.sha256(data).hexdigest()
        # Git's digest of a file is over a header and the content.
        header = b"blob %d\0" % len(data)
        return self.git_sha1 == hashlib.sha1(header + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Refs:
    """Where a repository stands."""

    head: str
    """Commit of `main`."""
    tags: dict[Version, str]
    """Released version -> commit that its tag names."""
    private: bool


@dataclass(frozen=True)
class Repository:
    """A model repository and the way to it."""

    name: str
    endpoint: str
    token: str | Literal[False]
    """False, not None: the client would look for a stored login."""
    offline: bool = False

    @property
    def page(self) -> str:
        """Its address for people."""
        return f"{self.endpoint}/{self.name}"

    def api(self) -> Any:
        """The client."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token)

    def ask(self, request: Callable[[], T], *, writes: bool = False) -> T:
        """The answer; a request that only reads is repeated where the hub is busy.

        Raises:
            StageError: the hub refuses.
            AbsentError: there is no such repository.
            UnreachableError: there is no answer.
        """
        for attempt in range(_TRIES):
            try:
                return request()
            except Exception as raised:  # the client's HTTP libraries share no base class
                error = _behind(raised)
                if writes or _status(error) not in _BUSY or attempt + 1 == _TRIES:
                    # Not from it: a traceback would show signed addresses.
                    raise self._verdict(error) from None
                time.sleep(0.5 * 2**attempt)
        raise AssertionError("the last try returns or raises")

    def refs(self) -> Refs:
        """Head, tags and visibility.

        Raises:
            AbsentError, UnreachableError, StageError: as `ask`.
        """
        found = self.ask(lambda: self.api().list_repo_refs(self.name))
        info = self.ask(lambda: self.api().model_info(self.name))
        tags = {}
        for tag in found.tags:
            try:
                tags[parse_version(tag.name)] = str(tag.target_commit)
            except ValueError:
                continue  # somebody's own tag
        return Refs(str(info.sha), tags, bool(info.private))

    def listing(self, commit: str) -> dict[str, Entry]:
        """Path -> entry of every file of a commit; errors as `ask`."""
        listed = self.ask(
            lambda: list(self.api().list_repo_tree(self.name, recursive=True, revision=commit))
        )
        return {
            item.path: Entry(
                item.lfs.size if item.lfs else item.size,
                item.blob_id,
                item.lfs.sha256 if item.lfs else "",
            )
            for item in listed
            if hasattr(item, "blob_id")  # a folder has none
        }

    def commits(self) -> list[tuple[str, str]]:
        """(Id, title) of every commit on `main`, the newest first; errors as `ask`."""
        found = self.ask(lambda: self.api().list_repo_commits(self.name))
        return [(str(commit.commit_id), str(commit.title)) for commit in found]

    def fetch(self, commit: str, path: str, *, again: bool = False) -> Path:
        """A file of a commit in the client's cache, unchecked; a transfer that broke off goes on.

        Args:
            commit: id.
            path: of the file.
            again: fetch it although it is in the cache.

        Raises:
            AbsentError, UnreachableError, StageError: as `ask`.
        """
        from huggingface_hub import hf_hub_download

        return self.ask(
            lambda: Path(
                hf_hub_download(
                    self.name,
                    path,
                    revision=commit,
                    cache_dir=hub_cache(),
                    endpoint=self.endpoint,
                    token=self.token,
                    local_files_only=self.offline,
                    force_download=again,
                )
            )
        )

    def _verdict(self, error: Exception) -> Exception:
        """What an error of the client means, as ours."""
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )

        status = _status(error)
        if isinstance(error, GatedRepoError):
            return StageError(f"{self.name} is gated: accept its terms at {self.page}")
        if isinstance(error, RepositoryNotFoundError) and (status == 404 or not self.token):
            return AbsentError(self.name)
        if isinstance(error, LocalEntryNotFoundError):
            return UnreachableError("offline" if self.offline else "no connection")
        if isinstance(error, EntryNotFoundError):
            return StageError(f"{self.page} lacks a file that its listing names")
        if status in (401, 403):
            return StageError(
                f"the hub at {self.endpoint} refuses {self.name} ({status}): set HF_TOKEN to a "
                "token with access, and with write access to publish"
            )
        if status in (409, 412):
            return StageError(f"{self.page} was changed meanwhile ({status}): try again")
        if status in _BUSY:
            return UnreachableError(f"it answers {status}")
        library = type(error).__module__.split(".")[0]
        if isinstance(error, ConnectionError | TimeoutError) or library in _HTTP_LIBRARIES:
            return UnreachableError(_first_line(error))
        return StageError(f"{self.page}: {_first_line(error)}")


def repository(name: str, endpoint: str | None = None, *, offline: bool = False) -> Repository:
    """The repository `owner/name` with what the environment says: HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE.

    Raises:
        StageError: `name` is no name of a repository.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise StageError(f"{name!r} is no repository: name one as owner/name")
    set_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return Repository(
        name,
        (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"),
        os.environ.get("HF_TOKEN", "").strip() or False,
        offline or set_offline,
    )


def _behind(error: Exception) -> Exception:
    """The error that the client's own words stand for; what it says of a card stays."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if "README.md" in str(error):
        return error
    while isinstance(error, LocalEntryNotFoundError | ValueError | RuntimeError) and isinstance(
        error.__cause__, Exception
    ):
        error = error.__cause__
    return error


def _status(error: Exception) -> int:
    """HTTP status that an error was raised for; 0 where there was no answer."""
    return int(getattr(getattr(error, "response", None), "status_code", None) or 0)


def _first_line(error: Exception) -> str:
    lines = without_secrets(str(error)).strip().splitlines()
    if len(lines) > 1 and lines[1].startswith("- "):  # a list of what is wrong with a card
        return " ".join(lines)
    return lines[0].rstrip(".") if lines else type(error).__name__
