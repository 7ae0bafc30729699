"""A night's measurement of every row on every benchmark, and what moved since the last one.

Measures with the functions of the evaluation stages into scratch folders, so that nothing is
reused; the Dagster asset around it is `nightly.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
from upath import UPath

from sr_assets.assets.bronze import KEY as BRONZE
from sr_assets.automation.originals import (
    Checked,
    compare_with_last_night,
    compare_with_source,
    measured_images,
)
from sr_assets.graph import Graph
from sr_assets.lineage.code_version import code_version
from sr_assets.lineage.progress import terminal_bar
from sr_assets.lineage.records import address_of, current_output
from sr_assets.lineage.stage import Ref, StageContext
from sr_assets.output_folder import OutputFolder
from sr_assets.storage import Output
from sr_assets.stores.manifest import MANIFEST, from_parquet
from sr_models.one_line import one_line

#: Largest change of an image's PSNR-Y that counts as none (dB).
TOLERANCE = 0.01
_RESULTS = "results.json"
_Log = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One row on one benchmark, as measured in a night."""

    row: str
    benchmark: str
    made_from: str
    """Address that the evaluation has for these inputs, this code and these settings."""
    psnr_y: float | None
    """Mean (dB); None where every image equals its original."""
    images: Mapping[str, float | None]
    """Image -> PSNR-Y (dB); None where it equals its original."""


@dataclass
class Night:
    """Everything that was measured in a night."""

    rows: list[Row] = field(default_factory=list)
    originals: dict[str, dict[str, str]] = field(default_factory=dict)
    """Benchmark -> image -> sha256."""
    problems: list[str] = field(default_factory=list)
    """What is wrong, a line each that names row, benchmark and image."""
    left_out: list[str] = field(default_factory=list)
    """Rows that have not been made yet, and sources that were not compared."""
    moved: float = 0.0
    """Largest change of an image's PSNR-Y without a change of inputs (dB)."""

    def to_json(self) -> dict[str, Any]:
        """A form for `night_from_json`."""
        return asdict(self)


def night_from_json(value: Mapping[str, Any]) -> Night:
    """Reads what `Night.to_json` wrote."""
    return Night(**{**value, "rows": [Row(**row) for row in value["rows"]]})


def measured_refs(graph: Graph) -> list[Ref]:
    """The evaluations that a night repeats, experts before the models that fuse them."""
    return [
        ref
        for ref in graph.refs()
        if graph.stages[ref.asset].partitions == "benchmark"
        and (ref.asset.endswith("/evaluation") or ref.asset == "evaluation/baselines")
    ]


def measure_night(
    graph: Graph, instance: dg.DagsterInstance, last: Night | None, log: _Log
) -> Night:
    """Measures everything again and compares it with the last night and the recorded evaluations.

    Args:
        graph: of the recipe.
        instance: whose records name the current outputs.
        last: the night before, if there was one.
        log: takes lines.

    A benchmark's images must be those of the last night and of their source: one that changed, went
    or came is a problem that is named (`originals.py`). PSNR-Y is compared image by image, where
    the inputs are the same.
    """
    night = Night()
    _check_originals(graph, instance, last, night)
    with TemporaryDirectory(prefix="srd-night-") as scratch:
        again: dict[Ref, Output] = {}
        for ref in measured_refs(graph):
            _measure(graph, instance, ref, Path(scratch), again, night, log)
    before = {} if last is None else {(row.row, row.benchmark): row for row in last.rows}
    recorded = {(row.row, row.benchmark): row for row in _recorded(graph, instance)}
    for row in night.rows:
        for rows, when in ((before, "since the last night"), (recorded, "since its evaluation")):
            old = rows.get((row.row, row.benchmark))
            if old is not None and old.made_from == row.made_from:
                _compare(row, old, when, night)
    night.problems = list(dict.fromkeys(night.problems))
    return night


def _check_originals(
    graph: Graph, instance: dg.DagsterInstance, last: Night | None, night: Night
) -> None:
    checked = Checked()
    bronze = graph.stages[BRONZE]
    for benchmark, dataset in graph.recipe.benchmarks.items():
        output = current_output(instance, graph, Ref(BRONZE, benchmark))
        if output is None:
            continue  # its rows are left out
        rows = from_parquet(output.read_bytes(MANIFEST))
        night.originals[benchmark] = measured_images(rows)
        if last is not None and benchmark in last.originals:
            compare_with_last_night(
                benchmark, night.originals[benchmark], last.originals[benchmark], checked
            )
        settings = bronze.partition_settings(benchmark)
        if settings.items() <= output.marker["settings"].items():
            now, before = bronze.outside(benchmark), output.marker["outside"]
            compare_with_source(benchmark, dataset, now, before, rows, checked)
        else:
            checked.left_out.append(
                f"benchmark {benchmark}: the recipe names another source than the one that bronze "
                f"was made from; run `srd build '{Ref(BRONZE, benchmark)}'`"
            )
    night.problems += checked.problems
    night.left_out += checked.left_out


def _measure(
    graph: Graph,
    instance: dg.DagsterInstance,
    ref: Ref,
    scratch: Path,
    again: dict[Ref, Output],
    night: Night,
    log: _Log,
) -> None:
    stage, benchmark = graph.stages[ref.asset], str(ref.partition)
    current = {r: current_output(instance, graph, r) for r in graph.inputs(ref)}
    made = {r: output for r, output in current.items() if output is not None}
    if len(made) < len(current):
        missing = ", ".join(str(r) for r in current if r not in made)
        night.left_out.append(f"{ref}: {missing} has not been made")
        return
    folder = OutputFolder(UPath(scratch / ref.asset / benchmark / "again"))
    inputs = {r: again.get(r, output) for r, output in made.items()}

    def ignore(points: Mapping[str, float | int]) -> None:
        """Curves are those of the evaluation itself."""

    def bar(label: str, total: int, unit: str) -> Any:
        return terminal_bar(log, label, total, unit)

    try:
        metadata = stage.run(StageContext(graph.recipe, ref, folder, inputs, log, ignore, bar))
    except Exception as error:  # whatever is wrong with one row, the others are measured
        reason = one_line(error)
        night.problems.append(f"benchmark {benchmark}: {ref.asset}: {reason}")
        return
    again[ref] = folder.commit({"metadata": metadata})
    outside = dict(stage.outside(ref.partition))
    address = address_of(stage, ref, code_version(stage), made, outside)
    night.rows += _rows(again[ref], benchmark, address)


def _rows(output: Output, benchmark: str, made_from: str) -> Iterator[Row]:
    """The rows that an evaluation or the controls hold."""
    for name in sorted(output.marker["files"]):
        if PurePosixPath(name).name == _RESULTS:
            results = output.read_json(name)
            images = {image["name"]: image["psnr_y"] for image in results["images"]}
            yield Row(results["name"], benchmark, made_from, results["mean"]["psnr_y"], images)


def _recorded(graph: Graph, instance: dg.DagsterInstance) -> Iterator[Row]:
    """What the recorded evaluations say, each with the address that it was made at."""
    for ref in measured_refs(graph):
        output = current_output(instance, graph, ref)
        if output is not None:
            yield from _rows(output, str(ref.partition), output.path.name)


def _compare(new: Row, old: Row, when: str, night: Night) -> None:
    for image in sorted(new.images.keys() ^ old.images.keys()):
        verb = "came" if image in new.images else "went"
        night.problems.append(
            f"{new.row} on {new.benchmark}: {image} {verb} {when}, and nothing that the row is "
            "made from changed"
        )
    for image in sorted(new.images.keys() & old.images.keys()):
        now, then = new.images[image], old.images[image]
        if now == then:
            continue
        if now is not None and then is not None:
            night.moved = max(night.moved, abs(now - then))
            if abs(now - then) <= TOLERANCE:
                continue
        night.problems.append(
            f"{new.row} on {new.benchmark}: PSNR-Y of {image} moved {_moved(then, now)} {when}, "
            "and nothing that it is made from changed"
        )


def _moved(then: float | None, now: float | None) -> str:
    if then is None or now is None:
        return "from an exact picture" if then is None else "to an exact picture"
    return f"by {now - then:+.3f} dB ({then:.3f} -> {now:.3f})"
