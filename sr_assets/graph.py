"""The composition root: from a recipe to the graph of stages.

Nothing of Dagster is known here; `lineage/dagster_assets.py` turns the graph into assets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from upath import UPath

from sr_assets.assets import (
    bronze,
    evaluation,
    expert_caches,
    experts,
    export,
    gold,
    models,
    overlap,
    perceptual,
    release,
    silver,
)
from sr_assets.lineage.stage import Partitioning, Ref, Stage, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.storage import root_of

_MODULES = (
    bronze, overlap, silver, gold, experts, expert_caches, models, evaluation, perceptual, export,
    release,
)  # fmt: skip


@dataclass(frozen=True)
class Graph:
    """Every stage of one recipe, in an order in which inputs come first."""

    recipe: Recipe
    root: UPath
    stages: dict[str, Stage]

    def partitions(self, stage: Stage) -> tuple[str | None, ...]:
        """The partitions of a stage; `(None,)` for one that has none."""
        return (
            (None,) if stage.partitions is None else partition_keys(self.recipe, stage.partitions)
        )

    def refs(self) -> Iterator[Ref]:
        """Every output of the graph, inputs first."""
        for stage in self.stages.values():
            for partition in self.partitions(stage):
                yield Ref(stage.key, partition)

    def inputs(self, ref: Ref) -> tuple[Ref, ...]:
        """What one output is made from, sorted, each once."""
        return tuple(sorted(set(self.stages[ref.asset].inputs(ref.partition)), key=str))

    def folder(self, ref: Ref) -> UPath:
        """Folder that holds every address of one output."""
        base = self.root / ref.asset
        return base if ref.partition is None else base / ref.partition

    def select(self, selection: list[str]) -> set[Ref]:
        """The outputs that a selection names, with all they are made from.

        Each entry is an asset key, `key[partition]`, or a shell pattern such as `expert/*/cache`.

        Raises:
            StageError: an entry names nothing.
        """
        from fnmatch import fnmatchcase

        every = list(self.refs())
        chosen: set[Ref] = set()
        for entry in selection:
            pattern = entry.replace("[", "[[]")
            found = {
                r for r in every if fnmatchcase(str(r), pattern) or fnmatchcase(r.asset, pattern)
            }
            if not found:
                raise StageError(
                    f"selection {entry!r} names no asset; there are: {', '.join(self.stages)}"
                )
            chosen |= found
        waiting = list(chosen)
        while waiting:
            for parent in self.inputs(waiting.pop()):
                if parent not in chosen:
                    chosen.add(parent)
                    waiting.append(parent)
        return chosen


def partition_keys(recipe: Recipe, partitioning: Partitioning) -> tuple[str, ...]:
    """The partition keys of one kind, in the order of the recipe."""
    if partitioning == "dataset":
        return tuple(recipe.datasets)
    if partitioning == "benchmark":
        return tuple(recipe.benchmarks)
    return (*recipe.datasets, *recipe.benchmarks)


def build_graph(recipe: Recipe) -> Graph:
    """All stages of a recipe, ordered so that inputs come first.

    Raises:
        StageError: a stage reads something that no stage makes, or the graph has a circle.
    """
    found = [stage for module in _MODULES for stage in module.stages(recipe)]
    stages = {stage.key: stage for stage in found}
    graph = Graph(recipe, root_of(recipe.name, recipe.root), stages)
    needs: dict[str, set[str]] = {}
    for stage in found:
        refs = {r for p in graph.partitions(stage) for r in stage.inputs(p)}
        for ref in refs:
            if ref.asset not in stages:
                raise StageError(f"{stage.key} reads {ref}, which nothing in this recipe makes")
        needs[stage.key] = {r.asset for r in refs}
    ordered: dict[str, Stage] = {}
    while len(ordered) < len(stages):
        ready = [k for k in stages if k not in ordered and needs[k] <= ordered.keys()]
        if not ready:
            raise StageError(
                f"the graph has a circle among {sorted(stages.keys() - ordered.keys())}"
            )
        ordered.update({key: stages[key] for key in ready})
    return Graph(recipe, graph.root, ordered)
