"""`srd gc`: which outputs, half-built folders and unfinished uploads below a root nothing needs.

What lies there is told by `root_contents.py`, and removed by `removal.py`; what is fresh or stale
is decided in `lineage/plan.py`. The registry of releases is never touched.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from upath import UPath

from sr_assets.graph import Graph
from sr_assets.lineage.code_version import code_version
from sr_assets.lineage.records import address_of, addresses_and_paths, current_address
from sr_assets.lineage.runs import bury_dead_runs
from sr_assets.lineage.stage import Ref, StageError
from sr_assets.output_folder import building_folder
from sr_assets.released import behind_releases
from sr_assets.removal import in_use, remove_folder
from sr_assets.root_contents import Folder, Kind, bytes_freed, folders_below
from sr_assets.storage import Output, is_local, open_output

_HOUR = 3600.0  # seconds


@dataclass(frozen=True)
class Unneeded:
    """One folder that can go."""

    folder: Folder
    name: str
    """`asset[partition]`; of one that was never finished, its place below the root."""

    @property
    def path(self) -> Path | UPath:
        """Where it is."""
        return self.folder.path

    @property
    def kind(self) -> Kind:
        """What it is."""
        return self.folder.kind

    @property
    def files(self) -> int:
        """How many files it has."""
        return len(self.folder.files)


@dataclass(frozen=True)
class Findings:
    """What can go, and what stays although the recipe does not need it."""

    unneeded: tuple[Unneeded, ...]
    bytes_freed: int
    """Space on disk, where a file with another hard link that stays frees none, and bytes of
    objects."""
    theirs: tuple[str, ...]
    """`asset[partition]` of current outputs of which the recipe knows nothing (any more)."""
    unknown: tuple[Path | UPath, ...]
    """Outputs that are damaged, or that no record of this Dagster home names."""

    def shared_with(self, other: Findings) -> tuple[Unneeded, ...]:
        """What can go by both."""
        theirs = {(str(item.path), item.kind) for item in other.unneeded}
        return tuple(item for item in self.unneeded if (str(item.path), item.kind) in theirs)


def find_unneeded(
    graph: Graph, instance: dg.DagsterInstance, *, older_than: float, dropped: bool = False
) -> Findings:
    """What below the graph's root nothing needs.

    Kept are the current output of everything in the root, of whatever recipe; what a build of this
    recipe would find and use again, or go on with; what a release was made from; what is in use,
    younger than `older_than` hours, or unknown to this Dagster home.

    Args:
        graph: of the recipe whose root is looked through.
        instance: where Dagster keeps its records.
        older_than: hours since an output was finished, or a build last wrote.
        dropped: whether outputs of assets and partitions that the recipe lacks can go, too.

    Raises:
        StageError: a run is in progress, or a release is damaged.
        RemoteError: the object store cannot be used.
    """
    _refuse_while_running(instance)
    before = time.time() - older_than * _HOUR
    folders = folders_below(graph.root)
    opened = {str(f.final): f.output for f in folders if f.kind == "output"}
    wanted, complete = _wanted(graph, instance, opened)
    refs = {path: _ref(graph, output) for path, output in opened.items()}
    ours = [output for path, output in opened.items() if output and refs[path]]
    released = behind_releases(graph.recipe, graph.root, ours)
    mine = set(graph.refs())
    places = {str(graph.folder(ref)) for ref in mine}
    records = _Records(instance, graph)
    unneeded: list[Unneeded] = []
    theirs: set[str] = set()
    unknown: list[Path | UPath] = []
    for folder in folders:
        address, place = folder.final.name, str(folder.final.parent)
        uploads = folder.kind == "uploads"  # no build goes on with them
        if str(folder.path) in wanted and not uploads:
            continue
        if folder.kind != "output":
            name = place.removeprefix(str(graph.root)).strip("/")
            if place not in places and not records.left_half_removed(name, address, dropped):
                unknown.append(folder.path)  # somebody else's, whatever it is
                continue
            free = complete or uploads
        else:
            output, ref = folder.output, refs[str(folder.final)]
            if ref is None or output is None:
                unknown.append(folder.path)
                continue
            if (str(ref), output.data_version) in released:
                continue
            current, named = records.of(ref)
            if address not in named:
                unknown.append(folder.path)
                continue
            if address == current and (ref in mine or not dropped):
                theirs |= set() if ref in mine else {str(ref)}
                continue
            name, free = str(ref), True
        if free and folder.written < before and not in_use(folder.final):
            unneeded.append(Unneeded(folder, name))
    freed = bytes_freed(item.folder for item in unneeded)
    return Findings(tuple(unneeded), freed, tuple(sorted(theirs)), tuple(unknown))


def remove(findings: Findings) -> int:
    """Removes what can go; returns how many folders were removed.

    What somebody has begun to build meanwhile stays.

    Raises:
        RemoteError: the object store cannot be used; a later call takes the rest.
    """
    return sum(remove_folder(item.folder) for item in findings.unneeded)


def _refuse_while_running(instance: dg.DagsterInstance) -> None:
    bury_dead_runs(instance)
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=NOT_FINISHED_STATUSES), limit=1)
    if runs:
        raise StageError(
            f"run {runs[0].run_id[:8]} is in progress: wait for its end, or stop it, then srd gc"
        )


def _wanted(
    graph: Graph, instance: dg.DagsterInstance, opened: Mapping[str, Output | None]
) -> tuple[set[str], bool]:
    """Paths that a build of the recipe as it is now would use, or build in, and whether all are.

    Where one is not whole, the current output stands for it: made again, it often has the same
    content, and what is above it is then found at its old address. Where that comes out otherwise,
    the folders above are not known.

    Args:
        opened: what is whole in the root, by its path.
    """
    complete = True
    versions = {key: code_version(stage) for key, stage in graph.stages.items()}
    whole: dict[Ref, Output] = {}
    paths: set[str] = set()
    for ref in graph.refs():
        parents = graph.inputs(ref)
        if any(parent not in whole for parent in parents):
            continue
        stage = graph.stages[ref.asset]
        inputs = {parent: whole[parent] for parent in parents}
        outside = dict(stage.outside(ref.partition))
        final = graph.folder(ref) / address_of(stage, ref, versions[ref.asset], inputs, outside)
        paths.add(str(final))
        if (output := _whole(final, opened)) is None:
            complete = False
            paths.add(str(building_folder(final)))
            if (address := current_address(instance, graph, ref)) is not None:
                output = _whole(graph.folder(ref) / address, opened)
        if output is not None:
            whole[ref] = output
    return paths, complete


def _whole(final: UPath, opened: Mapping[str, Output | None]) -> Output | None:
    if str(final) in opened or not is_local(final):
        return opened.get(str(final))
    return open_output(final)  # behind a link, which nobody follows who looks for what can go


def _ref(graph: Graph, output: Output | None) -> Ref | None:
    """What an output is of, where its marker and its place agree."""
    if output is None:
        return None
    asset, partition = output.marker.get("asset"), output.marker.get("partition")
    if not isinstance(asset, str) or not isinstance(partition, str | None):
        return None
    ref = Ref(asset, partition)
    return ref if str(graph.folder(ref)) == str(output.path.parent) else None


@dataclass(frozen=True)
class _Records:
    """What Dagster has recorded of outputs in one root, read once."""

    instance: dg.DagsterInstance
    graph: Graph
    _known: dict[Ref, tuple[str | None, set[str]]] = field(default_factory=dict)

    def of(self, ref: Ref) -> tuple[str | None, set[str]]:
        """The current address of an output, and every one that Dagster ever named."""
        if ref not in self._known:
            place = self.graph.folder(ref)
            found = addresses_and_paths(self.instance, ref)
            named = {address for address, path in found if path == str(place / address)}
            self._known[ref] = current_address(self.instance, self.graph, ref), named
        return self._known[ref]

    def left_half_removed(self, place: str, address: str, dropped: bool) -> bool:
        """Whether what is no whole output was one, of this home, that an earlier call removed.

        Args:
            place: below the root; of an asset, or of a partition of one.
            address: of the output.
            dropped: as in `find_unneeded`.
        """
        asset, _, partition = place.rpartition("/")
        for ref in [Ref(place), *([Ref(asset, partition)] if asset else [])]:
            current, named = self.of(ref)
            if address in named and (dropped or address != current):
                return True
        return False
