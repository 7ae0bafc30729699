"""The inbox: each new folder of images in it is registered as a dataset, once it has settled.

What is made of the dataset then is the business of `freshness.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import dagster as dg

from sr_assets.automation.settling import Progress, look_on
from sr_assets.graph import partition_keys
from sr_assets.lineage.added import register
from sr_assets.lineage.dagster_assets import PARTITIONS
from sr_assets.lineage.stage import StageError
from sr_assets.recipe.loading import shipped_recipes
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.sources import FolderSource

SENSOR = "inbox"
_EVERY = 30  # seconds
#: For looking through folders in one tick; Dagster ends a tick that takes 60 s, and what it found
#: is lost.
_SECONDS = 20.0
_LINES = 20  # that one tick says


@dataclass
class Arrivals:
    """What one look into the inbox found."""

    settled: dict[str, Path] = field(default_factory=dict)
    """Name -> folder that can be registered: it is as it was at the last look."""
    progress: dict[str, Progress] = field(default_factory=dict)
    """Name -> how far the looking through it has come, of what is not settled yet."""
    said: list[str] = field(default_factory=list)
    """A line for each thing that waits or cannot be taken."""


def inbox_of(recipe: Recipe, recipe_name: str) -> Path:
    """The recipe's inbox: beside its file, or below the current folder for a shipped recipe."""
    shipped = recipe_name in shipped_recipes()
    base = Path.cwd() if shipped else Path(recipe_name).absolute().parent
    return base / Path(recipe.automation.inbox).expanduser()


def look(
    inbox: Path, recipe: Recipe, before: Mapping[str, Progress], seconds: float = _SECONDS
) -> Arrivals:
    """What is in the inbox and no dataset yet.

    Args:
        inbox: the folder; it need not exist.
        recipe: with the datasets that are registered already.
        before: `progress` of the last look.
        seconds: time to keep to; each folder gets an equal share of what is left, and what does not
            suffice for a whole pass through it is gone on with at the next look.
    """
    found = Arrivals()
    if not inbox.is_dir():
        found.said.append(f"folders of images that are put into {inbox} become datasets")
        return found
    known = {
        Path(source.path).resolve(): name
        for name, dataset in {**recipe.datasets, **recipe.benchmarks}.items()
        if isinstance(source := dataset.source, FolderSource)
    }
    waiting: list[Path] = []
    for entry in sorted(inbox.iterdir()):
        name = entry.name
        if inbox.resolve() / name in known:
            continue
        if name.startswith("."):
            found.said.append(f"{name} is hidden: rename it to take it")
        elif entry.is_symlink():
            found.said.append(f"{name} is a link: put the folder itself here, or srd add-dataset")
        elif not entry.is_dir():
            found.said.append(f"{name} is no folder: put it into one")
        elif name in recipe.datasets or name in recipe.benchmarks:
            found.said.append(f"{name} is the name of another dataset: rename the folder")
        else:
            waiting.append(entry)
    until = time.monotonic() + seconds
    for left, folder in zip(range(len(waiting), 0, -1), waiting, strict=True):
        share = (until - time.monotonic()) / left
        _judge(folder, before.get(folder.name, Progress()), share, found)
    return found


def inbox_sensor(
    load: Callable[[], Recipe], recipe_name: str, status: dg.DefaultSensorStatus
) -> dg.SensorDefinition:
    """The sensor that registers what has settled, and adds its partitions."""

    @dg.sensor(
        name=SENSOR,
        description="Registers each new folder of images in the recipe's inbox as a dataset.",
        default_status=status,
        minimum_interval_seconds=_EVERY,
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        recipe = load()
        before = _read(context.cursor)
        found = look(inbox_of(recipe, recipe_name), recipe, before)
        taken = []
        for name, folder in found.settled.items():
            try:
                register(recipe, name, str(folder), benchmark=False)
                taken.append(name)
            except StageError as error:
                found.said.append(str(error))
                found.progress[name] = before[name]  # to be said again, until it is mended
        recipe = load() if taken else recipe
        said = [f"registered {', '.join(taken)}"] if taken else []
        said += found.said[:_LINES]
        if len(found.said) > _LINES:
            said.append(f"and {len(found.said) - _LINES} more")
        return dg.SensorResult(
            # Whatever is not known yet, so that a kill right after `register` loses nothing.
            dynamic_partitions_requests=[
                definition.build_add_request(new)
                for kind, definition in PARTITIONS.items()
                if (new := _unknown(context.instance, recipe, kind, definition))
            ],
            skip_reason="; ".join(said) or "nothing new",
            cursor=json.dumps({name: asdict(done) for name, done in found.progress.items()}),
        )

    return sensor


def _judge(folder: Path, before: Progress, seconds: float, found: Arrivals) -> None:
    progress, settled = look_on(folder, before, seconds)
    if settled:
        found.settled[folder.name] = folder
        return
    found.progress[folder.name] = progress
    if not progress.is_whole:
        found.said.append(f"{folder.name}: {progress.images} images looked at so far")
    elif not progress.images:
        found.said.append(f"{folder.name} holds no image yet")
    else:
        found.said.append(
            f"{folder.name} holds {progress.images} images; it is taken when it changes no more"
        )


def _read(cursor: str | None) -> dict[str, Progress]:
    entries = json.loads(cursor) if cursor else {}
    # Cursors of earlier versions held digests alone: those folders are looked at from the start.
    return {
        name: Progress(**{**entry, "after": tuple(entry["after"])})
        for name, entry in entries.items()
        if isinstance(entry, dict)
    }


def _unknown(
    instance: dg.DagsterInstance,
    recipe: Recipe,
    kind: str,
    definition: dg.DynamicPartitionsDefinition,
) -> list[str]:
    known = set(instance.get_dynamic_partitions(str(definition.name)))
    return [key for key in partition_keys(recipe, kind) if key not in known]  # type: ignore[arg-type]
