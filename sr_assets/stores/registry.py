"""The registry of released models: `registry/<model>/<version>/` with a manifest of digests.

A version appears whole and is never changed afterwards. Whether a model may be released is decided
in `assets/release.py`, which number it gets in `numbering.py`; listing and fetching for people is
`releases.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from upath import UPath

from sr_assets.disk import make_folder, sync_folder, sync_folders, told, write_synced
from sr_assets.lineage.stage import StageError
from sr_assets.recipe.models import Recipe
from sr_assets.remote_files import explained, file_system, folders
from sr_assets.storage import is_local, read_bytes, root_of
from sr_assets.stores.numbering import next_version
from sr_assets.stores.release_manifest import MANIFEST, FileEntry, Manifest, parse_manifest

FOLDER, CARD = "registry", "README.md"
#: `1.2.0`; whole numbers are versions of schema 1.
_VERSION_FOLDER = re.compile(r"\d+(\.\d+\.\d+)?")


@dataclass(frozen=True)
class Release:
    """One whole version in the registry."""

    path: UPath
    manifest: Manifest


def registry_folder(recipe: Recipe, root: UPath) -> UPath:
    """The folder of all models: `release.registry` of the recipe, or `registry` below `root`."""
    if recipe.release.registry is None:
        return root / FOLDER
    return root_of(recipe.name, recipe.release.registry)


Cards = Callable[[str, str], Mapping[str, bytes]]
"""(version, day) -> the files that tell them, by name."""


def _no_cards(version: str, day: str) -> Mapping[str, bytes]:
    return {}


def publish(
    registry: UPath,
    files: Mapping[str, bytes],
    manifest: Mapping[str, Any],
    *,
    cards: Cards = _no_cards,
    identity: str | None = None,
    pinned: str | None = None,
) -> Release:
    """Adds a version, or finds the one that released the same.

    Args:
        registry: folder of all models; made when it is not there.
        files: name -> content, the manifest and the cards apart.
        manifest: every field of `Manifest` but `version`, `created`, `identity` and `files`.
        cards: makes the files that tell version and day.
        identity: digest by which the same release is known again; that of all files, with empty
            texts for version and day, when left out.
        pinned: the version that the recipe asks for; what changed since the newest decides without.

    The version is above all earlier ones. It is written under a temporary name and renamed; on an
    object store, which cannot rename, its manifest is written last. A kill leaves no version.

    Raises:
        StageError: `pinned` is taken by other files, is below the newest version, or promises less
            change than there is.
    """
    folder = registry / manifest["model"]
    with _alone(folder):
        earlier = versions(registry, manifest["model"])
        identity = identity or _identity({**files, **cards("", "")})
        same = [r for r in earlier if r.manifest.identity == identity]
        if pinned is None and same:
            return same[-1]
        version = next_version([r.manifest for r in earlier], manifest, identity, pinned)
        for release in same:
            if release.manifest.number == version:
                return release
        created = datetime.now(UTC).isoformat(timespec="seconds")
        everything = {**files, **cards(str(version), created[:10])}
        record = Manifest(
            **manifest,
            version=str(version),
            identity=identity,
            created=created,
            files={
                name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
                for name, data in everything.items()
            },
        )
        final = folder / str(version)
        everything[MANIFEST] = record.model_dump_json(indent=1).encode() + b"\n"
        if is_local(final):
            with told(Path(str(final))):
                _write_local(Path(str(final)), everything)
        else:
            _write_remote(final, everything)
        return Release(final, record)


def models(registry: UPath) -> list[str]:
    """Names of all models in the registry, sorted."""
    return [f.name for f in _folders(registry) if not f.name.startswith(".")]


def versions(registry: UPath, model: str) -> list[Release]:
    """Every whole version of a model, the highest last; none for an unknown model.

    Raises:
        StageError: a manifest is damaged.
    """
    named = [f for f in _folders(registry / model) if _VERSION_FOLDER.fullmatch(f.name)]
    found = [release for f in named if (release := read_release(f)) is not None]
    return sorted(found, key=lambda release: release.manifest.number)


def read_release(folder: UPath) -> Release | None:
    """The version in `folder`, or None when it has no manifest (it was never finished).

    Raises:
        StageError: the manifest is damaged, or names files outside the folder.
    """
    path = folder / MANIFEST
    try:
        data = read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Release(folder, parse_manifest(data, str(path)))


def _identity(files: Mapping[str, bytes]) -> str:
    lines = [f"{name} {hashlib.sha256(data).hexdigest()}\n" for name, data in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _folders(parent: UPath) -> list[UPath]:
    try:
        if not is_local(parent):
            return folders(parent)
        return sorted((f for f in parent.iterdir() if f.is_dir()), key=lambda f: f.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextlib.contextmanager
def _alone(folder: UPath) -> Iterator[None]:
    """Keeps two processes from taking the same version; the lock dies with its process."""
    if not is_local(folder):
        yield
        return
    local = Path(str(folder))
    with told(local):
        make_folder(local)
        lock = FileLock(str(local / ".lock")).acquire()
    with lock:
        for leftover in local.glob(".*.partial"):
            shutil.rmtree(leftover)
        yield


def _write_local(final: Path, files: Mapping[str, bytes]) -> None:
    partial = final.with_name(f".{final.name}.partial")
    for name, data in files.items():
        target = partial / PurePosixPath(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_synced(target, data)
        target.chmod(0o444)  # a version is never changed
    sync_folders(partial)
    partial.replace(final)
    sync_folder(final.parent)


def _write_remote(final: UPath, files: Mapping[str, bytes]) -> None:
    """Writes a version to an object store, its manifest last and only where there is none."""
    fs = file_system(final)
    *others, manifest = files
    try:
        with explained(final):
            for name in others:
                fs.pipe_file(f"{final.path}/{name}", files[name])
            fs.pipe_file(f"{final.path}/{manifest}", files[manifest], mode="create")
    except FileExistsError as error:
        raise StageError(
            f"{final} was released by another machine meanwhile: release again, and check that "
            f"version with `srd pull`"
        ) from error
