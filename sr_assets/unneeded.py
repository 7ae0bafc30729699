"""`srd gc`: which outputs and half-built folders below a root nothing needs, and removing them.

What is fresh or stale is decided in `lineage/plan.py`; the registry of releases is never touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dagster as dg
from filelock import FileLock, Timeout
from upath import UPath

from sr_assets.graph import Graph
from sr_assets.lineage.code_version import code_version
from sr_assets.lineage.records import (
    address_of,
    addresses_and_paths,
    current_address,
    current_output,
)
from sr_assets.lineage.runs import bury_dead_runs
from sr_assets.lineage.stage import Ref, StageError
from sr_assets.output_folder import building_folder
from sr_assets.released import behind_releases
from sr_assets.storage import Output, is_local, open_output
from sr_assets.stores import registry

_ADDRESS = re.compile(r"[0-9a-f]{24}")
_BUILDING = re.compile(r"\.[0-9a-f]{24}\.partial")
_HOUR = 3600.0  # seconds
_BUSY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True)
class Unneeded:
    """One folder that can go."""

    path: Path
    kind: Literal["output", "building"]
    """`building`: what a killed run left."""
    name: str
    """`asset[partition]`; of one that is being built, its folder."""
    files: int


@dataclass(frozen=True)
class Findings:
    """What can go, and what stays although the recipe does not need it."""

    unneeded: tuple[Unneeded, ...]
    bytes_freed: int
    """Space on disk; a file with another hard link that stays frees none."""
    theirs: tuple[str, ...]
    """`asset[partition]` of current outputs of which the recipe knows nothing (any more)."""
    unknown: tuple[Path, ...]
    """Outputs that are damaged, or that no record of this Dagster home names."""

    def shared_with(self, other: Findings) -> tuple[Unneeded, ...]:
        """What can go by both."""
        theirs = {item.path for item in other.unneeded}
        return tuple(item for item in self.unneeded if item.path in theirs)


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
        StageError: a run is in progress, the root is not on this machine, or a release is damaged.
    """
    if not is_local(graph.root):
        raise StageError(
            f"srd gc works only on a folder of this machine, not on {graph.root}: remove by hand "
            "what `srd status --json` names as path of no asset"
        )
    _refuse_while_running(instance)
    before = time.time() - older_than * _HOUR
    wanted, complete = _wanted(graph, instance)
    folders = list(_folders(Path(str(graph.root))))
    outputs = {folder: _opened(folder) for folder in folders if _ADDRESS.fullmatch(folder.name)}
    refs = {folder: _ref(graph, folder, output) for folder, output in outputs.items()}
    ours = [output for folder, output in outputs.items() if output and refs[folder]]
    released = behind_releases(graph.recipe, graph.root, ours)
    mine = set(graph.refs())
    places = {Path(str(graph.folder(ref))) for ref in mine}
    records: dict[Ref, tuple[str | None, set[str]]] = {}
    unneeded: list[Unneeded] = []
    theirs: set[str] = set()
    unknown: list[Path] = []
    for folder in folders:
        if folder in wanted:
            continue
        if _BUILDING.fullmatch(folder.name):
            if folder.parent not in places:  # somebody else's, whatever it is
                unknown.append(folder)
            elif complete and _touched(folder) < before and not _in_use(folder):
                place = folder.parent.relative_to(Path(str(graph.root))).as_posix()
                unneeded.append(Unneeded(folder, "building", place, _count(folder)))
            continue
        output, ref = outputs[folder], refs[folder]
        if ref is None or output is None:
            unknown.append(folder)
            continue
        if (str(ref), output.data_version) in released:
            continue
        if ref not in records:
            records[ref] = _records(instance, graph, ref)
        current, named = records[ref]
        if folder.name not in named:
            unknown.append(folder)
            continue
        if folder.name == current and (ref in mine or not dropped):
            theirs |= set() if ref in mine else {str(ref)}
            continue
        if _touched(folder) < before and not _in_use(building_folder(UPath(folder))):
            unneeded.append(Unneeded(folder, "output", str(ref), _count(folder)))
    freed = _bytes_freed([u.path for u in unneeded])
    return Findings(tuple(unneeded), freed, tuple(sorted(theirs)), tuple(unknown))


def remove(findings: Findings) -> int:
    """Removes what can go; returns how many folders were removed.

    An output first gets the name of one that is being built: killed half way, no half output is
    left, and a later call takes the rest. What somebody has begun to build meanwhile stays.
    """
    removed = 0
    for item in findings.unneeded:
        building = item.path
        if item.kind == "output":
            building = building_folder(UPath(item.path))
        with contextlib.suppress(Timeout), FileLock(building.with_suffix(".lock"), timeout=0):
            if not item.path.exists():
                continue
            if item.kind == "output":
                shutil.rmtree(building, ignore_errors=True)
                item.path.replace(building)
            shutil.rmtree(building)
            removed += 1
    return removed


def _refuse_while_running(instance: dg.DagsterInstance) -> None:
    bury_dead_runs(instance)
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=_BUSY), limit=1)
    if runs:
        raise StageError(
            f"run {runs[0].run_id[:8]} is in progress: wait for its end, or stop it, then srd gc"
        )


def _wanted(graph: Graph, instance: dg.DagsterInstance) -> tuple[set[Path], bool]:
    """Folders that a build of the recipe as it is now would use, or build in, and whether all are.

    Where one is not whole, the current output stands for it: made again, it often has the same
    content, and what is above it is then found at its old address. Where that comes out otherwise,
    the folders above are not known.
    """
    complete = True
    versions = {key: code_version(stage) for key, stage in graph.stages.items()}
    whole: dict[Ref, Output] = {}
    folders: set[Path] = set()
    for ref in graph.refs():
        parents = graph.inputs(ref)
        if any(parent not in whole for parent in parents):
            continue
        stage = graph.stages[ref.asset]
        inputs = {parent: whole[parent] for parent in parents}
        outside = dict(stage.outside(ref.partition))
        final = graph.folder(ref) / address_of(stage, ref, versions[ref.asset], inputs, outside)
        folders |= {Path(str(final)), building_folder(final)}
        if (output := open_output(final)) is None:
            complete = False
            output = current_output(instance, graph, ref)
        if output is not None:
            whole[ref] = output
    return folders, complete


def _folders(root: Path) -> Iterator[Path]:
    """Outputs and folders of half-built ones, the registry left out; links are not followed."""
    for path, below, _ in os.walk(root):
        folder = Path(path)
        if folder == root and registry.FOLDER in below:
            below.remove(registry.FOLDER)
        for name in sorted(below):
            if _ADDRESS.fullmatch(name) or _BUILDING.fullmatch(name):
                below.remove(name)
                if not (folder / name).is_symlink():
                    yield folder / name


def _opened(folder: Path) -> Output | None:
    """The whole output in a folder; None also where a marker of that name is not one of ours."""
    try:
        return open_output(UPath(folder))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _ref(graph: Graph, folder: Path, output: Output | None) -> Ref | None:
    """What an output is of, where its marker and its place agree."""
    asset = None if output is None else output.marker.get("asset")
    if output is None or not isinstance(asset, str):
        return None
    ref = Ref(asset, output.marker.get("partition"))
    return ref if Path(str(graph.folder(ref))) == folder.parent else None


def _records(instance: dg.DagsterInstance, graph: Graph, ref: Ref) -> tuple[str | None, set[str]]:
    """The current address of an output in this root, and every one that Dagster ever named."""
    place = graph.folder(ref)
    named = {a for a, path in addresses_and_paths(instance, ref) if path == str(place / a)}
    return current_address(instance, graph, ref), named


def _touched(folder: Path) -> float:
    """When anything in a folder was last written (s since 1970), as far as files tell.

    A hard link shares its time with the file that it was made from, and says nothing.
    """
    times = [folder.stat().st_mtime]
    for entry in folder.rglob("*"):
        status = entry.lstat()
        if entry.is_dir() or status.st_nlink == 1:
            times.append(status.st_mtime)
    return max(times)


def _in_use(building: Path) -> bool:
    """Whether a process holds the lock of what is built in this folder."""
    lock = building.with_suffix(".lock")
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _count(folder: Path) -> int:
    return sum(not entry.is_dir() for entry in folder.rglob("*"))


def _bytes_freed(folders: list[Path]) -> int:
    """Space that goes with some folders: of files all of whose links are in them, each once."""
    links: Counter[tuple[int, int]] = Counter()
    known: dict[tuple[int, int], os.stat_result] = {}
    for folder in folders:
        for entry in folder.rglob("*"):
            status = entry.lstat()
            if not stat.S_ISDIR(status.st_mode):
                inode = (status.st_dev, status.st_ino)
                links[inode] += 1
                known[inode] = status
    return sum(known[i].st_blocks * 512 for i, n in links.items() if n >= known[i].st_nlink)
