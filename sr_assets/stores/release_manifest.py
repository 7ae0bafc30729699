"""The manifest of a release: digests of its files, what it was made from, and how good it is.

Where manifests are kept is `registry.py`; which version is next is `numbering.py`.
"""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from sr_assets.lineage.stage import StageError
from sr_assets.stores.schema import RELEASES, newer
from sr_assets.stores.versions import Version, VersionText, parse_version

MANIFEST = "manifest.json"
#: 1 counted versions 1, 2, 3.
FORMAT: Literal[2] = 2
#: A manifest is read whole; a larger one is none (bytes).
LARGEST_MANIFEST = 32 << 20


def _stays_inside(name: str) -> str:
    parts = name.split("/")
    if "\\" in name or ":" in name or "\0" in name or any(p in ("", ".", "..") for p in parts):
        raise ValueError(f"{name!r} would leave the release's folder")
    if any(part.lower() == ".git" for part in parts):
        raise ValueError(f"{name!r} would change the git repository that it is pulled into")
    return name


FileName = Annotated[str, AfterValidator(_stays_inside)]


class FileEntry(BaseModel):
    """Digest and size of one released file."""

    model_config = ConfigDict(frozen=True)

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size: int = Field(ge=0)


def _numbered(version: object) -> object:
    """Manifests of schema 1 count their versions 1, 2, 3: these are 1.0.0, 2.0.0, 3.0.0."""
    if isinstance(version, int) and not isinstance(version, bool):
        return f"{version}.0.0"
    return version


class Upstream(BaseModel):
    """One output that a release was made from, directly or through others."""

    model_config = ConfigDict(frozen=True)

    data_version: str
    code_version: str | None = None
    inputs: tuple[str, ...] | None = None
    """What it was made from itself; None where its output is gone."""
    sha256: str | None = None
    """Of the weights of an expert."""


class Manifest(BaseModel):
    """`manifest.json` of one version. Fields that a later program adds are kept out of the way."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1, 2] = FORMAT
    needs: str | None = RELEASES["srd.release"][FORMAT - 1]
    """The first release of sr-distillery that reads this; programs before the field leave it."""
    model: str
    version: Annotated[VersionText, BeforeValidator(_numbered)]
    kind: str
    architecture: str
    scale: int = Field(ge=1)
    parameters: int | None = None
    licence: str | None = None
    licences: dict[str, dict[str, str | None]] = Field(default_factory=dict)
    """`data`, `experts` and `teachers` that it was distilled from: name -> licence."""
    content: str
    """Data version of the export."""
    identity: str | None = None
    """Digest of what is released, without version and day: the same is never released twice."""
    interface: dict[str, Any] = Field(default_factory=dict)
    """What a program that runs it relies on: a change of it is a new major version."""
    weights: str | None = None
    """Digest of the tensors: new weights are a new minor version."""
    data: dict[str, str]
    """What the model was trained from: `gold/pairs[photos]` -> data version; caches likewise."""
    code_version: str | None = None
    """Of the training that made the weights."""
    upstream: dict[str, Upstream] = Field(default_factory=dict)
    """Everything behind it, as far as its outputs are still there."""
    recipe: str | None = None
    """All of the recipe that can change a result, as YAML."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The same with all defaults: dotted path -> value."""
    metrics: dict[str, dict[str, Any]]
    """Benchmark -> mean score (psnr_y, ssim_y, colour_offset) and the PSNR-Y of every image."""
    controls: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """Row that it is shown beside -> benchmark -> mean score."""
    checks: list[dict[str, Any]] = Field(default_factory=list)
    """Outcomes of the release checks."""
    benchmarks: dict[str, str] = Field(default_factory=dict)
    """Benchmark -> data version of its images: numbers compare only where these are equal."""
    made_with: dict[str, str] = Field(default_factory=dict)
    """Machine and packages of the program that released it."""
    created: str
    files: dict[FileName, FileEntry]

    @property
    def number(self) -> Version:
        """The version, for comparing."""
        return parse_version(self.version)

    @property
    def name(self) -> str:
        """`model@version`."""
        return f"{self.model}@{self.version}"


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest that `data` holds.

    Raises:
        StageError: it is damaged, written by a newer program, or names files outside the folder;
            `where` is told.
    """
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        _refuse_newer(data, where)
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StageError(f"{where}: {field}: {first['msg']}; this release is damaged") from None


def _refuse_newer(data: bytes, where: str) -> None:
    """Raises StageError for a manifest of a later format: it is not damaged."""
    found: object = None
    with contextlib.suppress(ValueError):
        found = json.loads(data)
    if not isinstance(found, dict) or not isinstance(found.get("format"), int):
        return
    if found["format"] > FORMAT:
        what = f"{where} is a release manifest of format {found['format']}"
        raise StageError(newer(what, FORMAT, found.get("needs"))) from None
