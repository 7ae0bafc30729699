"""What a stage of the graph is: the record every module in `assets/` fills in.

A stage says what it reads, what of the recipe and of the code decides its result, and how to make
it. Deciding whether it must run is `plan.py`; running it under Dagster is `dagster_assets.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output

#: `source` is every image set (datasets and benchmarks); the other two are its halves.
Partitioning = Literal["source", "dataset", "benchmark"]


@dataclass(frozen=True, order=True)
class Ref:
    """One output in the graph: an asset key such as `silver/patches` and its partition, if any."""

    asset: str
    partition: str | None = None

    def __str__(self) -> str:
        return self.asset if self.partition is None else f"{self.asset}[{self.partition}]"


class StageError(Exception):
    """A stage cannot be made; the message is one line that names the field or file and the mend."""


Observe = Callable[[Mapping[str, float | int]], None]
#: Passes a JSON value on to the step that started this process.
Tell = Callable[[Any], None]
#: What each process of a group does.
Job = Callable[[Tell], None]


@dataclass(frozen=True)
class Given:
    """What a stage reads: all that another process needs to compute a part of its output."""

    recipe: Recipe
    ref: Ref
    inputs: Mapping[Ref, Output]

    @property
    def partition(self) -> str:
        """The partition that is being made.

        Raises:
            ValueError: the stage has no partitions.
        """
        if self.ref.partition is None:
            raise ValueError(f"{self.ref.asset} has no partitions")
        return self.ref.partition

    def input(self, asset: str, partition: str | None = None) -> Output:
        """The current output of one of the declared inputs.

        Raises:
            KeyError: the stage did not declare it.
        """
        return self.inputs[Ref(asset, partition)]


def _never_together(count: int, job: Job, hear: Callable[[Any], None]) -> None:
    raise StageError("compute.processes: only a run of Dagster starts processes: set it to 1")


@dataclass
class StageContext:
    """What a stage is given when it runs."""

    recipe: Recipe
    ref: Ref
    output: OutputFolder
    inputs: Mapping[Ref, Output]
    log: Callable[[str], None]
    #: Draws points of curves in Dagster while the stage runs; at most about 100 calls a run.
    observe: Observe
    #: (label, total, unit) -> context manager that yields `advance(n)`.
    bar: Callable[[str, int, str], Any]
    #: What a store keeps as its provenance: digests of the inputs, code version, recipe slice.
    origin: Mapping[str, Any] = field(default_factory=dict)
    #: (how many, job, takes what the first one tells): runs the job in processes of one group.
    together: Callable[[int, Job, Callable[[Any], None]], None] = _never_together

    @property
    def given(self) -> Given:
        """What the stage reads, without what it writes."""
        return Given(self.recipe, self.ref, self.inputs)

    @property
    def partition(self) -> str:
        """The partition that is being made; see `Given`."""
        return self.given.partition

    def input(self, asset: str, partition: str | None = None) -> Output:
        """The current output of one of the declared inputs; see `Given`."""
        return self.given.input(asset, partition)

    @contextmanager
    def progress(
        self, label: str, total: int, unit: str = "images"
    ) -> Iterator[Callable[[int], None]]:
        """A progress bar in the terminal, log lines in Dagster; yields `advance(n)`."""
        with self.bar(label, total, unit) as advance:
            yield advance


def _no_inputs(partition: str | None) -> Iterable[Ref]:
    return ()


def _nothing(partition: str | None) -> dict[str, Any]:
    return {}


def _no_modules(partition: str | None) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Stage:
    """One asset of the graph."""

    key: str
    description: str
    group: str
    run: Callable[[StageContext], dict[str, Any]]
    """Writes into `context.output` and returns metadata (JSON values; numbers become plots)."""
    modules: tuple[str, ...]
    """Where the code version starts: these modules and all of ours that they import."""
    kinds: frozenset[str] = frozenset()
    partitions: Partitioning | None = None
    inputs: Callable[[str | None], Iterable[Ref]] = _no_inputs
    """What one partition reads."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Dotted recipe path -> JSON value: the recipe slice in the code version."""
    partition_settings: Callable[[str | None], Mapping[str, Any]] = _nothing
    """The same for what differs between partitions, such as a dataset's source."""
    partition_modules: Callable[[str | None], tuple[str, ...]] = _no_modules
    """Where the code version starts for what one partition alone uses, such as its kind of source.
    """
    outside: Callable[[str | None], Mapping[str, str]] = _nothing
    """Fingerprint of what lies outside the graph (files of a folder): name -> short digest."""
    pool: str | None = None
    """`gpu` for a stage that runs a network on an accelerator."""
    checks: Mapping[str, str] = field(default_factory=dict)
    """Name and meaning of each check whose outcome `run` returns under the key `checks`: a list of
    {"name", "passed", "reason", "numbers"}."""

    def modules_of(self, partition: str | None) -> tuple[str, ...]:
        """All modules that the code version of one partition starts from."""
        return (*self.modules, *self.partition_modules(partition))
