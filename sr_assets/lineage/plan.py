"""The stale plan: for every output fresh, stale or missing, and why, in one line.

It reads records and markers and runs nothing; `build.py` runs what the plan says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import dagster as dg
from upath import UPath

from sr_assets.graph import Graph
from sr_assets.lineage.code_version import code_version, module_digests
from sr_assets.lineage.records import address_of, current_addresses
from sr_assets.lineage.stage import Ref, Stage
from sr_assets.storage import Output, open_outputs, why_not_whole

State = Literal["fresh", "stale", "missing"]


@dataclass(frozen=True)
class Status:
    """Where one output stands."""

    ref: Ref
    state: State
    why: str
    """Empty for a fresh one."""
    output: Output | None
    """The current output; None when it is missing."""
    ready: bool
    """Whether everything it is made from is fresh, so that it could be made now."""


def survey(graph: Graph, instance: dg.DagsterInstance) -> dict[Ref, Status]:
    """The status of every output of the graph, inputs first.

    A stale input makes what hangs below it stale too: whether it really must run again is known
    only when the input has been remade, since equal content stops there.
    """
    versions = {key: code_version(stage) for key, stage in graph.stages.items()}
    addresses = current_addresses(instance, graph)
    places = {ref: graph.folder(ref) / address for ref, address in addresses.items()}
    outputs = dict(zip(places, open_outputs(graph.root, list(places.values())), strict=True))
    found: dict[Ref, Status] = {}
    for ref in graph.refs():
        version, place = versions[ref.asset], places.get(ref)
        found[ref] = _status(graph, ref, version, place, outputs.get(ref), found)
    return found


def _status(
    graph: Graph,
    ref: Ref,
    version: str,
    place: UPath | None,
    output: Output | None,
    found: Mapping[Ref, Status],
) -> Status:
    stage = graph.stages[ref.asset]
    inputs = graph.inputs(ref)
    late = [r for r in inputs if found[r].state != "fresh"]
    if output is None:
        why = (
            "never made"
            if place is None
            else why_not_whole(place) or f"its output {place.name} is no longer in {graph.root}"
        )
        return Status(ref, "missing", why, None, not late)
    if late:
        whys = [f"{r} is {found[r].state}" for r in late]
        return Status(ref, "stale", _join(whys), output, False)
    outside = dict(stage.outside(ref.partition))
    made_from = {r: o for r in inputs if (o := found[r].output) is not None}
    if output.path.name == address_of(stage, ref, version, made_from, outside):
        return Status(ref, "fresh", "", output, True)
    why = _join(differences(stage, ref, output.marker, made_from, outside))
    return Status(ref, "stale", why, output, True)


def differences(
    stage: Stage,
    ref: Ref,
    marker: Mapping[str, Any],
    inputs: Mapping[Ref, Output],
    outside: Mapping[str, str],
) -> list[str]:
    """What changed since an output was made, a phrase each, most telling first."""
    settings = {**stage.settings, **stage.partition_settings(ref.partition)}
    lines = [
        f"recipe {path} {_show(old)} -> {_show(new)}"
        for path, old, new in _changes(marker["settings"], settings)
    ]
    now = module_digests(stage.modules_of(ref.partition))
    for module, old, new in _changes(marker["modules"], now):
        verb = "changed" if old and new else ("is now used" if new else "is no longer used")
        lines.append(f"{module} {verb}")
    versions = {str(r): o.data_version for r, o in inputs.items()}
    for name, old, new in _changes(marker["inputs"], versions):
        if old and new:
            lines.append(f"{name} has new content")
        else:
            lines.append(f"now reads {name}" if new else f"no longer reads {name}")
    lines += _outside_changes(marker["outside"], outside)
    return lines or ["its recorded address does not match what it is made from"]


def _outside_changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Files that came, went or changed, counted, with one name for each."""
    changes = _changes(old, new)
    lines = []
    for verb, names in (
        ("added", [n for n, was, _ in changes if was is None]),
        ("removed", [n for n, _, now in changes if now is None]),
        ("changed", [n for n, was, now in changes if was is not None and now is not None]),
    ):
        if names:
            more = "" if len(names) == 1 else f" and {len(names) - 1} more"
            lines.append(f"{names[0]}{more} {verb}")
    return lines


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    keys = sorted(old.keys() | new.keys())
    return [(k, old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)]


def _show(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _join(lines: list[str], most: int = 3) -> str:
    more = "" if len(lines) <= most else f"; and {len(lines) - most} more"
    return "; ".join(lines[:most]) + more
