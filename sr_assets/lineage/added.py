"""Datasets that were registered from outside the recipe, kept beside the outputs.

The recipe's own datasets are in the recipe; how both become partitions is in `build.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError
from upath import UPath

from sr_assets.disk import write_whole
from sr_assets.lineage.stage import StageError
from sr_assets.recipe.loading import added_datasets_file
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.sources import (
    ArchiveSource,
    Dataset,
    FolderSource,
    HubSource,
    ImageSource,
    UrlListSource,
)
from sr_assets.storage import cache_folder, is_local

#: Revision of a hub source that is named without one.
BRANCH = "main"
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")


def register(
    recipe: Recipe, name: str, source: str, *, benchmark: bool, lr: str | None = None
) -> Dataset:
    """Adds `source` as dataset (or benchmark) `name` to the recipe's root.

    Args:
        recipe: the recipe whose root it is added to; the recipe itself stays as it is.
        name: of the new partition.
        source: as `source_of` reads it.
        benchmark: whether it is for evaluation only.
        lr: the dataset's own LR images, as `source_of` reads it.

    Raises:
        StageError: the source is none, or the name is taken or cannot be a partition.

    Safe to call from several processes at once, such as the sensor of the inbox and a person; where
    the root is on an object store, from processes of one machine.
    """
    if name in recipe.datasets or name in recipe.benchmarks:
        raise _taken(name)
    dataset = Dataset(
        source=source_of(source), lr=None if lr is None else source_of(lr), training=False
    )
    role = "benchmarks" if benchmark else "datasets"
    # Only what was given: some fields exclude one another, whatever their defaults are.
    data = recipe.model_dump(mode="json", exclude_unset=True)
    data.setdefault(role, {})[name] = dataset.model_dump(mode="json")
    try:
        Recipe.model_validate(data)
    except ValidationError as error:
        raise StageError(f"{name!r} cannot be a dataset: {error.errors()[0]['msg']}") from None
    file = added_datasets_file(recipe)
    with _alone(file):
        added = json.loads(file.read_bytes()) if file.exists() else {}
        if any(name in datasets for datasets in added.values()):
            raise _taken(name)  # since the recipe was loaded
        added.setdefault(role, {})[name] = dataset.model_dump(mode="json")
        text = json.dumps(added, indent=1)
        if is_local(file):
            write_whole(Path(str(file)), text.encode())
        else:
            file.write_text(text)  # an object appears whole
    return dataset


def _taken(name: str) -> StageError:
    return StageError(f"{name!r} is already a dataset or benchmark: choose another name")


@contextlib.contextmanager
def _alone(file: UPath) -> Iterator[None]:
    """Keeps two processes from changing the file at once; the lock dies with its process."""
    if is_local(file):
        lock = Path(str(file)).with_name(f".{file.name}.lock")
    else:
        lock = cache_folder() / "locks" / hashlib.sha256(str(file).encode()).hexdigest()[:24]
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield


def source_of(words: str) -> ImageSource:
    """The source that a person means by a folder, a file or hub:owner/name[@revision].

    Raises:
        StageError: there is no such folder or file, or it is of no kind that holds images.
    """
    if words.startswith("hub:"):
        repo, _, revision = words.removeprefix("hub:").partition("@")
        try:
            return HubSource(kind="hub", repo=repo, revision=revision or BRANCH)
        except ValidationError:
            raise StageError(
                f"{words} names no dataset repository: write hub:owner/name or "
                "hub:owner/name@revision"
            ) from None
    path = Path(words).expanduser().absolute()
    if path.is_dir():
        return FolderSource(kind="folder", path=str(path))
    if not path.exists():
        raise StageError(
            f"{path} does not exist: give a folder with images, an archive, a text file of URLs, "
            "or hub:owner/name@revision"
        )
    ending = path.name.lower()
    if path.is_file() and ending.endswith(_ARCHIVES):
        return ArchiveSource(kind="archive", path=str(path))
    if path.is_file() and ending.endswith(".txt"):
        return UrlListSource(kind="url_list", path=str(path))
    raise StageError(
        f"{path} is no folder, no archive ({', '.join(_ARCHIVES)}) and no .txt file of URLs"
    )
