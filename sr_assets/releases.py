"""Finding released models and fetching their files, every byte verified.

What a version is on disk is `stores/registry.py`; making one is `assets/release.py`, and the hub's
side of it `hub/`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from sr_assets.lineage.stage import StageError
from sr_assets.storage import hash_file
from sr_assets.stores import registry
from sr_assets.stores.registry import FOLDER, Release
from sr_assets.stores.release_manifest import MANIFEST, FileEntry, Manifest
from sr_assets.stores.versions import fits

_BLOCK = 1 << 20


@dataclass(frozen=True)
class ReleaseInfo:
    """One released version, as a listing shows it."""

    model: str
    version: str
    kind: str
    architecture: str
    scale: int
    parameters: int | None
    licence: str | None
    bytes: int
    created: str
    psnr_y: dict[str, float | None]
    """Benchmark -> dB; None where every picture equals its original."""
    path: str

    @property
    def name(self) -> str:
        """`model@version`, which `pull` takes."""
        return f"{self.model}@{self.version}"


def list_releases(root: str | Path | UPath, registry_at: UPath | None = None) -> list[ReleaseInfo]:
    """Every released version, the highest of each model last.

    Args:
        root: the folder of a recipe's outputs.
        registry_at: the registry where it is not below `root`.

    Raises:
        StageError: a manifest is damaged.
    """
    folder = registry_at or UPath(root) / FOLDER
    return [_info(r) for model in registry.models(folder) for r in registry.versions(folder, model)]


def find_release(root: str | Path | UPath, name: str, registry_at: UPath | None = None) -> Release:
    """The release that `name` or `name@version` names; the newest that fits.

    Args:
        root: the folder of a recipe's outputs.
        name: a version may be in full (`net@1.2.0`), or its first parts (`net@1`: the newest 1.x).
        registry_at: the registry where it is not below `root`.

    Raises:
        StageError: there is none; the message lists what there is.
    """
    folder = registry_at or UPath(root) / FOLDER
    model, at, version = name.partition("@")
    if model not in registry.models(folder):
        known = ", ".join(registry.models(folder))
        raise StageError(
            f"no released model {model!r} in {folder}: "
            + (f"there are: {known}" if known else "nothing is released yet, see `srd build`")
        )
    found = registry.versions(folder, model)
    if at:
        found = [r for r in found if fits(r.manifest.number, version)]
    if not found:
        known = ", ".join(r.manifest.name for r in registry.versions(folder, model))
        raise StageError(f"no release {name!r} in {folder}: there are: {known or 'none'}")
    return found[-1]


def pull(
    root: str | Path | UPath, name: str, to: Path | None = None, registry_at: UPath | None = None
) -> list[Path]:
    """Copies one release into a folder, checking the digest of every file on the way.

    Args:
        root: folder of a recipe's outputs, or its address on an object store.
        name: as in `find_release`.
        to: folder that gets the files; `<name>-<version>` in the current folder when left out. It
            may exist, also with other files; a file of the same name with other content is kept.
        registry_at: the registry where it is not below `root`.

    Returns:
        The files, the manifest last. A folder that did not exist appears whole or not at all.

    Raises:
        StageError: nothing of that name, a digest that does not match, or a file in the way.
    """
    release = find_release(root, name, registry_at)

    def locate(file: str) -> UPath:
        return release.path / file

    return place(release.manifest, (release.path / MANIFEST).read_bytes(), locate, to)


def place(
    manifest: Manifest,
    manifest_bytes: bytes,
    locate: Callable[[str], UPath | Path],
    to: Path | None,
) -> list[Path]:
    """Puts the files of a release into a folder, each checked; see `pull`.

    Args:
        manifest: of the release.
        manifest_bytes: as it is stored.
        locate: file name -> where its content is now; asked when it is wanted.
        to: as in `pull`.

    Raises:
        StageError: as `pull`.
    """
    to = Path(f"{manifest.model}-{manifest.version}") if to is None else to
    if to.exists() and not to.is_dir():
        raise StageError(f"{to} is a file: give --to a folder")
    names = [*manifest.files, MANIFEST]
    digests = {n: e.sha256 for n, e in manifest.files.items()}
    digests[MANIFEST] = hashlib.sha256(manifest_bytes).hexdigest()
    for file in names:
        target = to / file
        if target.exists() and (not target.is_file() or hash_file(target) != digests[file]):
            raise StageError(f"{target} is there with other content: give --to another folder")
    partial = to.absolute().parent / f".{to.absolute().name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for file, entry in manifest.files.items():
            _fetch(locate(file), entry, partial / file)
        (partial / MANIFEST).write_bytes(manifest_bytes)
        if to.exists():
            for file in names:
                (to / file).parent.mkdir(parents=True, exist_ok=True)
                (partial / file).replace(to / file)
        else:
            partial.replace(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [to / file for file in names]


def _info(release: Release) -> ReleaseInfo:
    m = release.manifest
    return ReleaseInfo(
        model=m.model,
        version=m.version,
        kind=m.kind,
        architecture=m.architecture,
        scale=m.scale,
        parameters=m.parameters,
        licence=m.licence,
        bytes=sum(entry.size for entry in m.files.values()),
        created=m.created,
        psnr_y={benchmark: score.get("psnr_y") for benchmark, score in m.metrics.items()},
        path=str(release.path),
    )


def _fetch(source: UPath | Path, entry: FileEntry, target: Path) -> None:
    """Copies one file, synced, and compares digest and size with the manifest."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            while size <= entry.size and (block := reader.read(_BLOCK)):
                digest.update(block)
                size += len(block)
                writer.write(block)
            writer.flush()
            os.fsync(writer.fileno())
    except FileNotFoundError as error:
        raise StageError(f"{source} is missing: this release is damaged") from error
    if (digest.hexdigest(), size) != (entry.sha256, entry.size):
        raise StageError(
            f"{source} is not what was released (its sha256 differs from {MANIFEST}): "
            "this release is damaged, pull another version"
        )
