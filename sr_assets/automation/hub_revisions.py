"""Watches the branches and tags of hub datasets: one that moved makes its bronze stale.

Making bronze again is the business of `freshness.py`; the hub's ways are `sources/hub_client.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import dagster as dg

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.sources import HubSource
from sr_assets.storage import cache_folder

SENSOR = "hub_revisions"
_EVERY = 600  # seconds


def look(recipe: Recipe) -> tuple[list[str], list[str]]:
    """A line for each source that has moved, and one for each that could not be asked about."""
    from sr_assets.sources.hub_client import look_for_move

    moved, problems = [], []
    for where, source in hub_sources(recipe):
        try:
            commit = look_for_move(source, where, cache_folder() / "sources")
        except StageError as error:
            problems.append(str(error))
            continue
        if commit is not None:
            moved.append(f"{where}: {source.repo}@{source.revision} moved to {commit[:12]}")
    return moved, problems


def hub_sources(recipe: Recipe) -> Iterator[tuple[str, HubSource]]:
    """Field of the recipe and source, for every source on the hub."""
    for section, datasets in (("datasets", recipe.datasets), ("benchmarks", recipe.benchmarks)):
        for name, dataset in datasets.items():
            for field, source in (("source", dataset.source), ("lr", dataset.lr)):
                if isinstance(source, HubSource):
                    yield f"{section}.{name}.{field}", source


def hub_sensor(load: Callable[[], Recipe], status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """The sensor that asks the hub and notes what moved."""

    @dg.sensor(
        name=SENSOR,
        description="Makes the bronze of a hub dataset stale when its branch or tag has moved.",
        default_status=status,
        minimum_interval_seconds=_EVERY,
    )
    def sensor() -> dg.SkipReason:
        moved, problems = look(load())
        return dg.SkipReason("; ".join([*moved, *problems]) or "no branch or tag has moved")

    return sensor
