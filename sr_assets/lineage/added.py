"""Datasets that were registered from outside the recipe, kept beside the outputs.

The recipe's own datasets are in the recipe; how both become partitions is in `build.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.loading import added_datasets_file
from sr_assets.recipe.models import Dataset, FolderSource, Recipe


def register(recipe: Recipe, name: str, source: str, *, benchmark: bool) -> None:
    """Adds the folder `source` as dataset (or benchmark) `name` to the recipe's root.

    Raises:
        StageError: the folder does not exist, or the name is taken or cannot be a partition.
    """
    folder = Path(source).expanduser().absolute()
    if not folder.is_dir():
        raise StageError(f"{folder} is no folder: give the folder that holds the images")
    if name in recipe.datasets or name in recipe.benchmarks:
        raise StageError(f"{name!r} is already a dataset or benchmark: choose another name")
    dataset = Dataset(source=FolderSource(kind="folder", path=str(folder)), training=False)
    role = "benchmarks" if benchmark else "datasets"
    # Only what was given: some fields exclude one another, whatever their defaults are.
    data = recipe.model_dump(mode="json", exclude_unset=True)
    data.setdefault(role, {})[name] = dataset.model_dump(mode="json")
    try:
        Recipe.model_validate(data)
    except ValidationError as error:
        raise StageError(f"{name!r} cannot be a dataset: {error.errors()[0]['msg']}") from None
    file = added_datasets_file(recipe)
    added = json.loads(file.read_bytes()) if file.exists() else {}
    added.setdefault(role, {})[name] = dataset.model_dump(mode="json")
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(json.dumps(added, indent=1))
    temporary.replace(file)
