"""The registry of released models: `registry/<model>/<version>/` with a manifest of digests.

A version appears whole and is never changed afterwards. Whether a model may be released is decided
in `assets/release.py`; listing and fetching for people is `releases.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from filelock import FileLock
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from upath import UPath

from sr_assets.lineage.stage import StageError
from sr_assets.storage import is_local

FOLDER, MANIFEST, CARD = "registry", "manifest.json", "model_card.md"


def _stays_inside(name: str) -> str:
    parts = name.split("/")
    if "\\" in name or ":" in name or "\0" in name or any(p in ("", ".", "..") for p in parts):
        raise ValueError(f"{name!r} would leave the release's folder")
    return name


FileName = Annotated[str, AfterValidator(_stays_inside)]


class FileEntry(BaseModel):
    """Digest and size of one released file."""

    model_config = ConfigDict(frozen=True)

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size: int = Field(ge=0)


class Manifest(BaseModel):
    """`manifest.json` of one version. Fields that a later program adds are kept out of the way."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    model: str
    version: int = Field(ge=1)
    kind: str
    architecture: str
    scale: int = Field(ge=1)
    parameters: int | None = None
    licence: str | None = None
    content: str
    """Data version of the export: the same content is never released twice."""
    data: dict[str, str]
    """What the model was trained from: `gold/pairs[photos]` -> data version; caches likewise."""
    code_version: str | None = None
    """Of the training that made the weights."""
    metrics: dict[str, dict[str, Any]]
    """Benchmark -> mean score (psnr_y, ssim_y, colour_offset) and the PSNR-Y of every image."""
    benchmarks: dict[str, str] = Field(default_factory=dict)
    """Benchmark -> data version of its images: numbers compare only where these are equal."""
    created: str
    files: dict[FileName, FileEntry]


@dataclass(frozen=True)
class Release:
    """One whole version in the registry."""

    path: UPath
    manifest: Manifest


def publish(registry: UPath, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> Release:
    """Adds a version, or finds the one that released the same content.

    Args:
        registry: folder of all models; made when it is not there.
        files: name -> content, the manifest apart.
        manifest: every field of `Manifest` but `version`, `created` and `files`.

    The version is the highest so far plus one. It is written under a temporary name and renamed; on
    an object store, which cannot rename, its manifest is written last. A kill leaves no version.
    """
    folder = registry / manifest["model"]
    with _alone(folder):
        earlier = versions(registry, manifest["model"])
        for release in earlier:
            if release.manifest.content == manifest["content"]:
                return release
        record = Manifest(
            **manifest,
            version=1 + max((r.manifest.version for r in earlier), default=0),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files={
                name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
                for name, data in files.items()
            },
        )
        final = folder / str(record.version)
        everything = {**files, MANIFEST: record.model_dump_json(indent=1).encode() + b"\n"}
        if is_local(final):
            _write_local(Path(str(final)), everything)
        else:
            for name, data in everything.items():  # the manifest is the last one
                (final / name).parent.mkdir(parents=True, exist_ok=True)
                (final / name).write_bytes(data)
        return Release(final, record)


def models(registry: UPath) -> list[str]:
    """Names of all models in the registry, sorted."""
    return [f.name for f in _folders(registry) if not f.name.startswith(".")]


def versions(registry: UPath, model: str) -> list[Release]:
    """Every whole version of a model, oldest first; none for an unknown model.

    Raises:
        StageError: a manifest is damaged.
    """
    numbers = [int(f.name) for f in _folders(registry / model) if f.name.isdecimal()]
    found = [read_release(registry / model / str(number)) for number in sorted(numbers)]
    return [release for release in found if release is not None]


def read_release(folder: UPath) -> Release | None:
    """The version in `folder`, or None when it has no manifest (it was never finished).

    Raises:
        StageError: the manifest is damaged, or names files outside the folder.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return Release(folder, Manifest.model_validate_json(data))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StageError(f"{path}: {field}: {first['msg']}; this release is damaged") from error


def _folders(parent: UPath) -> list[UPath]:
    try:
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
    local.mkdir(parents=True, exist_ok=True)
    with FileLock(str(local / ".lock")):
        for leftover in local.glob(".*.partial"):
            shutil.rmtree(leftover)
        yield


def _write_local(final: Path, files: Mapping[str, bytes]) -> None:
    partial = final.with_name(f".{final.name}.partial")
    for name, data in files.items():
        target = partial / PurePosixPath(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        target.chmod(0o444)  # a version is never changed
    partial.replace(final)
    handle = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
