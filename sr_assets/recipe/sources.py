"""The part of a recipe that says where images come from.

Finding and fetching them is `sr_assets/sources/`; what is done with them are the other sections.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from sr_assets.recipe.strict import Sha256, Strict

Patterns = tuple[str, ...]
Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_TAKEN = "Shell patterns; a file is taken when one matches its relative path."
_LEFT_OUT = "Shell patterns; a file is left out when one matches its relative path."


_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*")
#: What git allows in no name, and what would lead elsewhere in an address.
_NO_REVISION = re.compile(r"\.\.|//|^[/.-]|[/.]$|[\s\\?*\[~^:#%\x00-\x1f\x7f]")


def _some(patterns: Patterns) -> Patterns:
    if not patterns:
        raise ValueError("an empty list takes no image: leave the field out to take all")
    return patterns


def _repo(name: str) -> str:
    if not _REPO.fullmatch(name) or ".." in name:
        raise ValueError(f"{name!r} is no repository: name one as owner/name")
    return name


def _revision(name: str) -> str:
    if not name or _NO_REVISION.search(name):
        raise ValueError(f"{name!r} is no commit, tag or branch: name one, such as main")
    return name


def _path(path: str) -> str:
    if not path.strip():
        raise ValueError("an empty path: name a file or folder")
    return path


Include = Annotated[Patterns, AfterValidator(_some)]
Place = Annotated[str, AfterValidator(_path)]


class FolderSource(Strict):
    """Images of a folder and everything below it."""

    kind: Literal["folder"]
    path: Place = Field(description="Folder, relative to the recipe file or absolute.")
    include: Include = Field(("*",), description=_TAKEN)


class BuiltinSource(Strict):
    """Photos that ship inside the installed scikit-image package."""

    kind: Literal["builtin"]
    images: tuple[str, ...] = Field(min_length=1, description="File names, such as astronaut.png.")


class HubSource(Strict):
    """Images of a Hugging Face dataset repository: files in folders, or columns of parquet files
    and webdataset shards."""

    kind: Literal["hub"]
    repo: Annotated[str, AfterValidator(_repo)] = Field(
        description="owner/name of the dataset repository."
    )
    revision: Annotated[str, AfterValidator(_revision)] = Field(
        description="Commit, tag or branch; only a full commit names the same for ever, and needs "
        "no network once it is fetched.",
    )
    include: Include = Field(("*",), description=f"{_TAKEN} Tables are files here, not folders.")
    ignore: Patterns = Field((), description=_LEFT_OUT)
    subset: str | None = Field(
        None,
        description="Only this configuration of the repository, or this folder of it, in which "
        "paths then start.",
    )
    column: str | None = Field(
        None, description="Image column of parquet files and shards; found when there is only one."
    )
    maximum: int | None = Field(
        None, ge=1, description="Only the first so many images, by path or by table and row."
    )
    max_gigabytes: Limit = Field(
        64.0,
        description="A repository whose images that are meant are larger together, unpacked where "
        "they are in tables, is refused.",
    )
    max_megabytes: Limit = Field(
        2048.0, description="An image that is larger than this is not taken."
    )


class ArchiveSource(Strict):
    """Images inside a zip or tar file, compressed or not."""

    kind: Literal["archive"]
    path: Place = Field(description="File, relative to the recipe file or absolute.")
    include: Include = Field(("*",), description=_TAKEN)
    sha256: Sha256 | None = Field(None, description="The archive must have this digest.")
    max_gigabytes: Limit = Field(
        64.0,
        description="An archive whose images are larger together, unpacked, is refused; so is a "
        "compressed tar file that holds more than this.",
    )
    max_megabytes: Limit = Field(
        2048.0, description="An image that is larger than this, unpacked, is not taken."
    )


class UrlListSource(Strict):
    """Images behind the URLs of a text file: one a line, with a sha256 after it where it is known;
    lines that begin with # are comments."""

    kind: Literal["url_list"]
    path: Place = Field(description="Text file, relative to the recipe file or absolute.")
    max_megabytes: Limit = Field(512.0, description="A file that is larger than this is not taken.")


ImageSource = Annotated[
    FolderSource | BuiltinSource | HubSource | ArchiveSource | UrlListSource,
    Field(discriminator="kind"),
]


def _folder(value: Any) -> Any:
    return {"kind": "folder", "path": value} if isinstance(value, str) else value


class Dataset(Strict):
    """Where the images of one dataset or benchmark come from."""

    source: ImageSource = Field(description="Where the images are.")
    lr: Annotated[ImageSource | None, BeforeValidator(_folder)] = Field(
        None,
        description="The dataset's own LR images, a folder or a source, matched by name: gold then "
        "cuts them instead of making LR, and a benchmark is measured on them.",
    )
    damaged: bool = Field(
        False,
        description="Of a benchmark: measured on LR that is degraded as `gold.degradation` says, "
        "instead of bicubic LR.",
    )
    licence: str | None = Field(None, description="Licence of the images, copied to model cards.")
    training: bool = Field(
        True, description="Whether models that name no datasets train on this one."
    )
