"""Fetching a release from a hub by its tag: every file checked, and a tag that moved refused.

The files come into the client's cache first, so that an interrupted transfer goes on and a release
that was fetched once needs no network. Publishing is `publishing.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from sr_assets.hub.repository import (
    AbsentError,
    Entry,
    Repository,
    UnreachableError,
)
from sr_assets.lineage.stage import StageError
from sr_assets.releases import place
from sr_assets.sources.hub_answers import silent_client
from sr_assets.storage import cache_folder, hash_file
from sr_assets.stores.release_manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    FileEntry,
    Manifest,
    parse_manifest,
)
from sr_assets.stores.versions import Version, fits, parse_version


def pull_from_hub(repository: Repository, wanted: str, to: Path | None = None) -> list[Path]:
    """Puts the files of one release into a folder.

    Args:
        repository: where it was published.
        wanted: `v1.2.0` or its first parts (`v1`: the newest 1.x); the newest when empty.
        to: as in `releases.pull`.

    Returns:
        The files, the manifest last.

    Raises:
        StageError: there is no such tag, it names another commit than when it was first pulled, a
            file is not what the manifest says, or the hub cannot be reached and the cache lacks it.
    """
    where = repository.name
    with silent_client():
        try:
            version, commit = _tag(repository, wanted)
            listing = None if repository.offline else repository.listing(commit)
            manifest, data = _manifest(repository, version, commit, listing)
            _compare(repository, manifest, listing)

            def locate(file: str) -> Path:
                return _file(repository, commit, file, manifest.files[file])

            files = place(manifest, data, locate, to)
        except AbsentError:
            mend = "its name, and HF_TOKEN if it is private"
            raise StageError(f"{repository.endpoint} shows no {where}: check {mend}") from None
        except UnreachableError as error:
            raise StageError(
                f"{'@'.join(filter(None, (where, wanted)))} is not whole in the cache, and the hub "
                f"at {repository.endpoint} cannot be reached ({error}): pull it once with network"
            ) from None
    _remember(repository, version, commit)
    return files


def _tag(repository: Repository, wanted: str) -> tuple[Version, str]:
    """The version that is meant, and its commit."""
    known = _remembered(repository)
    tags = known if repository.offline else repository.refs().tags
    fitting = [version for version in tags if not wanted or fits(version, wanted)]
    if not fitting:
        if repository.offline:
            raise UnreachableError("offline")
        there = ", ".join(version.tag for version in sorted(tags)) or "none"
        raise StageError(f"{repository.name} has no release {wanted or 'yet'}; its tags: {there}")
    version = max(fitting)
    commit = tags[version]
    if known.get(version, commit) != commit:
        raise StageError(
            f"{repository.name}@{version.tag} has moved from commit {known[version][:12]} to "
            f"{commit[:12]} since it was pulled first, and a release never changes: ask its owner, "
            f"or delete {_note(repository)} to take it as it is now"
        )
    return version, commit


def _manifest(
    repository: Repository, version: Version, commit: str, listing: dict[str, Entry] | None
) -> tuple[Manifest, bytes]:
    where = f"{repository.name}@{version.tag}"
    if listing is not None:
        if MANIFEST not in listing:
            raise StageError(f"{where} holds no {MANIFEST}: it is no release of this program")
        if listing[MANIFEST].size > LARGEST_MANIFEST:
            raise StageError(f"{where}: {MANIFEST} is larger than {LARGEST_MANIFEST >> 20} MiB")
    data = repository.fetch(commit, MANIFEST).read_bytes()
    if listing is not None and not listing[MANIFEST].is_of(data):
        _delete(repository.fetch(commit, MANIFEST))
        raise StageError(f"{where}: {MANIFEST} came damaged: its digest is not that of the commit")
    manifest = parse_manifest(data, f"{where}/{MANIFEST}")
    if manifest.number != version:
        raise StageError(f"{where}: its {MANIFEST} is of {manifest.name}: this release is damaged")
    return manifest, data


def _compare(repository: Repository, manifest: Manifest, listing: dict[str, Entry] | None) -> None:
    """Refuses, before anything large is fetched, what the listing shows to be another file."""
    if listing is None:
        return
    where = f"{repository.name}@{manifest.number.tag}"
    for file, entry in manifest.files.items():
        if file not in listing:
            raise StageError(f"{where}: {file} is missing: this release is damaged")
        if not listing[file].holds(entry.size, entry.sha256):
            raise StageError(f"{where}: {file} is not what was released (its digest or size)")


def _file(repository: Repository, commit: str, file: str, entry: FileEntry) -> Path:
    """The file in the cache; fetched once more where it is damaged."""
    for again in (False, True):
        path = repository.fetch(commit, file, again=again)
        if path.stat().st_size == entry.size and hash_file(path) == entry.sha256:
            return path
        _delete(path)
        if repository.offline:
            break
    raise StageError(
        f"{repository.name}: {file} is not what was released (its sha256 differs from {MANIFEST})"
    )


def _delete(path: Path) -> None:
    """Removes a file of the cache and the blob that it shows."""
    if path.is_symlink():
        (path.parent / path.readlink()).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _note(repository: Repository) -> Path:
    words = f"{repository.endpoint} {repository.name}"
    name = hashlib.sha256(words.encode()).hexdigest()[:24]
    return cache_folder() / "hub" / "tags" / f"{name}.json"


def _remembered(repository: Repository) -> dict[Version, str]:
    """The commits of tags that were pulled before."""
    try:
        tags = json.loads(_note(repository).read_bytes())["tags"]
        return {parse_version(tag): str(commit) for tag, commit in tags.items()}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}


def _remember(repository: Repository, version: Version, commit: str) -> None:
    note, known = _note(repository), _remembered(repository)
    if known.get(version) == commit:
        return
    tags = {v.tag: c for v, c in sorted((known | {version: commit}).items())}
    note.parent.mkdir(parents=True, exist_ok=True)
    temporary = note.with_name(f"{note.name}.{os.getpid()}.tmp")
    temporary.write_text(
        json.dumps({"of": f"{repository.endpoint} {repository.name}", "tags": tags})
    )
    temporary.replace(note)
