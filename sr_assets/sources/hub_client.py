"""One commit of a dataset repository on the Hugging Face hub: its listing, and its files, checked.

Which of the files are wanted is `hub.py`. The transfer itself is huggingface_hub's, in its cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.sources import HubSource
from sr_assets.sources.files import Fetching
from sr_assets.sources.hub_answers import Damaged, Site, Unreachable, hub_cache, site_of

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ANSWER_WITHIN = 30.0  # seconds
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One file of a commit; `sha256` is empty unless it is stored outside git (LFS, Xet)."""

    path: str
    size: int
    git_sha1: str
    sha256: str

    @property
    def digest(self) -> str:
        """What its content is told by."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True)
class Commit:
    """One commit of a repository: its files, sorted by path."""

    site: Site
    sha: str
    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        return f"{self.site.repo}@{self.sha[:12]}"

    def download(self, entry: Entry) -> Path:
        """The file in the hub's cache, fetched unless it is there, its size and digest checked.

        Raises:
            StageError: it cannot be fetched, or what arrives is twice not what the listing says.
        """
        site, wrong = self.site, ""
        for again in (False, True):
            try:
                path = self._fetch(entry, again)
            except Damaged as error:
                wrong = str(error)
            except Unreachable as error:
                raise StageError(
                    f"{site.where}: {entry.path} of {self} is not in the cache and the hub at "
                    f"{site.endpoint} cannot be reached ({error}): check the network, HF_ENDPOINT "
                    "and HF_HUB_OFFLINE"
                ) from error
            else:
                wrong = _wrong(path, entry)
                if not wrong:
                    return path
                _delete(path)
            if site.offline:
                raise StageError(
                    f"{site.where}: {entry.path} of {self} was damaged in the cache ({wrong}) and "
                    "has been removed: build again without HF_HUB_OFFLINE"
                )
            site.log(f"{entry.path} of {self}: {wrong}" + ("" if again else "; fetched once more"))
        raise StageError(
            f"{site.where}: {entry.path} of {self} came damaged twice ({wrong}): try later, or "
            "leave it out with `ignore`"
        )

    def _fetch(self, entry: Entry, again: bool) -> Path:
        """The file by the client, unchecked; `again` fetches it although it is in the cache."""
        from huggingface_hub import hf_hub_download

        site = self.site
        return site.ask(
            lambda: Path(
                hf_hub_download(
                    site.repo,
                    entry.path,
                    repo_type="dataset",
                    revision=self.sha,
                    cache_dir=hub_cache(),
                    endpoint=site.endpoint,
                    token=site.token,
                    local_files_only=site.offline,
                    force_download=again,
                )
            )
        )


def open_commit(source: HubSource, fetching: Fetching) -> Commit:
    """The commit that `source.revision` names, with its listing.

    A listing is kept, for a commit does not change; what a branch was at is kept for when the hub
    cannot be reached. With a full cache, a pinned commit needs no request at all.

    Raises:
        StageError: no such repository or revision, no access, or no network and nothing kept.
    """
    site = site_of(source.repo, source.revision, fetching.where, fetching.log)
    kept = fetching.cache / "hub"
    try:
        sha = source.revision
        if not _COMMIT.fullmatch(sha):
            sha = _resolve(site, kept)
        return Commit(site, sha, _tree(site, sha, kept))
    except Unreachable as error:
        raise StageError(
            f"{site.where}: the hub at {site.endpoint} cannot be reached ({error}) and nothing of "
            f"{site.repo}@{site.revision} is kept: connect once, or mend HF_ENDPOINT"
        ) from error


def _resolve(site: Site, kept: Path) -> str:
    """The commit that a branch or tag is at now, or was at when the hub last answered."""
    try:
        sha = _sha(site, site.revision)
    except Unreachable as error:
        known = _commit_in(_note(site, kept, "revisions"))
        if known is None:
            raise
        site.log(
            f"{site.where}: the hub at {site.endpoint} cannot be reached ({error}); "
            f"{site.repo}@{site.revision} is taken as commit {known}, as last time"
        )
        return known
    site.log(f"{site.where}: {site.repo}@{site.revision} is commit {sha}")
    _write_json(_note(site, kept, "revisions"), {"of": _words(site), "commit": sha})
    return sha


def moved_to(source: HubSource, cache: Path) -> str | None:
    """The commit that the source's branch or tag was last seen to move to, without asking the hub.

    None for a source that names a commit, and as long as `look_for_move` has seen no move.
    """
    if _COMMIT.fullmatch(source.revision):
        return None
    site = site_of(source.repo, source.revision, "", lambda line: None)
    return _commit_in(_note(site, cache / "hub", "moves"))


def look_for_move(source: HubSource, where: str, cache: Path) -> str | None:
    """Asks the hub whether a branch or tag has moved since it was fetched last, and notes that.

    Args:
        source: whose revision is looked up; one that names a commit never moves.
        where: field of the recipe, for messages.
        cache: folder for downloads, as `Fetching.cache`.

    Returns:
        The commit that it has moved to; None where it has not, or was never fetched.

    Raises:
        StageError: the hub refuses or cannot be reached.
    """
    if _COMMIT.fullmatch(source.revision):
        return None
    site = site_of(source.repo, source.revision, where, lambda line: None)
    fetched = _commit_in(_note(site, cache / "hub", "revisions"))
    if fetched is None:
        return None
    try:
        sha = _sha(site, source.revision)
    except Unreachable as error:
        raise StageError(
            f"{where}: the hub at {site.endpoint} cannot be reached ({error}): whether "
            f"{source.repo}@{source.revision} has moved is not known"
        ) from error
    if sha == fetched:
        return None
    _write_json(_note(site, cache / "hub", "moves"), {"of": _words(site), "commit": sha})
    return sha


def _words(site: Site) -> str:
    return f"{site.endpoint} {site.repo} {site.revision}"


def _note(site: Site, kept: Path, kind: str) -> Path:
    """File that keeps a commit of a branch or tag."""
    return kept / kind / f"{hashlib.sha256(_words(site).encode()).hexdigest()[:24]}.json"


def _commit_in(note: Path) -> str | None:
    commit = str((_read_json(note) or {}).get("commit", ""))
    return commit if _COMMIT.fullmatch(commit) else None


def _tree(site: Site, sha: str, kept: Path) -> tuple[Entry, ...]:
    """Every file of a commit, sorted by path."""
    note = kept / "trees" / site.repo.replace("/", "--") / f"{sha}.json"
    known = _read_json(note)
    if known is not None:
        try:
            return tuple(Entry(*row) for row in known["files"])
        except (TypeError, KeyError):
            pass  # of another version: asked for again
    _sha(site, sha)  # the client would try a hub that is away for half a minute
    listed = site.ask(
        lambda: list(
            site.api().list_repo_tree(site.repo, recursive=True, revision=sha, repo_type="dataset")
        )
    )
    files = {
        item.path: Entry(
            item.path,
            item.lfs.size if item.lfs else item.size,
            item.blob_id,
            item.lfs.sha256 if item.lfs else "",
        )
        for item in listed
        if hasattr(item, "blob_id")  # a folder has none
    }
    entries = tuple(files[path] for path in sorted(files))
    _write_json(note, {"files": [astuple(entry) for entry in entries]})
    return entries


def _sha(site: Site, revision: str) -> str:
    if site.offline:
        raise Unreachable("HF_HUB_OFFLINE is set")
    info = site.ask(
        lambda: site.api().dataset_info(
            site.repo, revision=revision, expand=["sha"], timeout=_ANSWER_WITHIN
        )
    )
    if not _COMMIT.fullmatch(info.sha or ""):
        raise StageError(
            f"{site.where}: {site.endpoint} names no commit for {site.repo}@{revision}: check that "
            "HF_ENDPOINT is a hub"
        )
    return str(info.sha)


def _wrong(path: Path, entry: Entry) -> str:
    """How a file differs from its entry in the listing; empty when it does not."""
    size = path.stat().st_size
    if size != entry.size:
        return f"{size} bytes instead of {entry.size}"
    # Git's digest of a file is over a header and the content.
    digest = (
        hashlib.sha256()
        if entry.sha256
        else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    )
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return "" if digest.hexdigest() == entry.digest else "its digest differs from the listing"


def _delete(path: Path) -> None:
    """Removes a file of the cache and the blob that it shows."""
    if path.is_symlink():
        (path.parent / path.readlink()).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)
