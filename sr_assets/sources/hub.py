"""Images of a Hugging Face dataset repository: which of its files are meant, fetched in parallel.

The hub's own ways are `hub_client.py`; images inside tables and shards are `hub_tables.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import yaml

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.sources import HubSource
from sr_assets.sources.files import EXTENSIONS, Fetching, Found, SourceFile
from sr_assets.sources.hub_answers import silent_client
from sr_assets.sources.hub_client import Commit, Entry, moved_to, open_commit
from sr_assets.sources.hub_patterns import Patterns
from sr_assets.sources.hub_tables import TABLES, Unpacking
from sr_assets.sources.names import unsafe
from sr_assets.storage import cache_folder

T = TypeVar("T")
R = TypeVar("R")
Named = tuple[str, Entry]


def find(source: HubSource, fetching: Fetching) -> Found:
    """The images of the repository at its revision, in the hub's cache or unpacked from tables.

    Raises:
        StageError: the hub refuses or cannot be reached, the subset or column does not exist, no
            image is left, or it is not clear whether image files or tables are meant.
    """
    with silent_client():
        commit = open_commit(source, fetching)
        found, images, tables = _sort(_subset(source, commit, fetching), source)
        if source.column is None and images and tables:
            raise StageError(
                f"{fetching.where}: {commit} holds {len(images)} image files (first: "
                f"{images[0][0]}) and {len(tables)} tables or shards (first: {tables[0][0]}): say "
                "which are meant with `include`, or with `column`"
            )
        if source.column is not None and not tables:
            raise StageError(
                f"{fetching.where}.column: {commit} has no parquet file or tar shard among the "
                "files that are meant; leave `column` out"
            )
        _refuse_too_much(tables or images, commit, source, fetching)
        if tables:
            found.files += _from_tables(tables, commit, source, fetching)
        else:
            found.files += _from_files(images, commit, source, fetching)
    found.files.sort(key=lambda file: file.shown)
    if not found.files:
        others = ", ".join(f"{count} {kind}" for kind, count in found.ignored.most_common(5))
        raise StageError(
            f"{fetching.where}: no image in {commit} is meant by include {list(source.include)}, "
            f"ignore {list(source.ignore)} and subset {source.subset!r} (other files: "
            f"{others or 'none'}); mend these fields"
        )
    return found


def fingerprint(source: HubSource) -> dict[str, str]:
    """The commit that the branch or tag was seen to move to, from a note: no plan asks the network.

    Nothing for a source that names a commit, since what that holds does not change.
    """
    commit = moved_to(source, cache_folder() / "sources")
    return {} if commit is None else {f"{source.repo}@{source.revision}": commit}


def _sort(entries: Iterable[Named], source: HubSource) -> tuple[Found, list[Named], list[Named]]:
    """The image files and the tables that are meant, and what is not; unsafe names are in `found`.

    `maximum` is applied to the image files, unsafe names included.
    """
    found = Found()
    images: list[Named] = []
    tables: list[Named] = []
    for shown, entry in entries:
        if any(part.startswith(".") for part in shown.split("/")) and not unsafe(shown):
            continue  # as in a folder
        ending = PurePosixPath(shown).suffix.lower()
        if ending not in EXTENSIONS and ending not in TABLES:
            found.ignored[ending or "no extension"] += 1
        elif _meant(shown, source):
            (images if ending in EXTENSIONS else tables).append((shown, entry))
    if images and source.column is None:
        # What the hub calls an image folder may describe its images in such a file.
        described = [pair for pair in tables if PurePosixPath(pair[0]).name == "metadata.parquet"]
        tables = [pair for pair in tables if pair not in described]
        found.ignored.update(Counter({".parquet": len(described)}) if described else {})
    images = images[: source.maximum]
    return found, images, tables


def _refuse_too_much(
    wanted: list[Named], commit: Commit, source: HubSource, fetching: Fetching
) -> None:
    """Before anything is fetched, as far as it can be told; tables are counted when unpacked."""
    if (
        source.maximum is not None
        and wanted
        and PurePosixPath(wanted[0][0]).suffix.lower() in TABLES
    ):
        return  # not all of them may be needed
    total = sum(entry.size for _, entry in wanted) / 10**9
    if total > source.max_gigabytes:
        raise StageError(
            f"{fetching.where}.max_gigabytes: {len(wanted)} files of {commit} have {total:.1f} GB, "
            f"more than {source.max_gigabytes:g}; raise it, or take fewer with `include` or "
            "`maximum`"
        )


def _meant(shown: str, source: HubSource) -> bool:
    return any(fnmatchcase(shown, pattern) for pattern in source.include) and not any(
        fnmatchcase(shown, pattern) for pattern in source.ignore
    )


def _from_files(
    images: list[Named], commit: Commit, source: HubSource, fetching: Fetching
) -> Iterator[SourceFile]:
    names = {shown for shown, _ in images}

    def problem_of(shown: str, entry: Entry) -> str:
        if problem := unsafe(entry.path):
            return problem
        for folder in PurePosixPath(shown).parents:
            if str(folder) in names:
                return f"{str(folder)!r} is an image in the repository, and a folder"
        if entry.size > source.max_megabytes * 10**6:
            return f"{entry.size} bytes, more than max_megabytes {source.max_megabytes:g}"
        return ""

    def fetch(named: Named) -> SourceFile:
        shown, entry = named
        problem = problem_of(shown, entry)
        if problem:
            return SourceFile(Path(), shown, problem)
        # The cache shows its blobs through links.
        return SourceFile(commit.download(entry).resolve(), shown)

    with (
        fetching.bar(f"fetch {commit}", len(images), "files") as advance,
        _in_order(fetch, images, fetching.workers) as files,
    ):
        for file in files:
            advance(1)
            yield file


def _from_tables(
    tables: list[Named], commit: Commit, source: HubSource, fetching: Fetching
) -> Iterator[SourceFile]:
    unpacking = Unpacking(source, fetching)

    def fetch(named: Named) -> Path | None:
        shown, entry = named
        problem = unsafe(entry.path)
        if problem:
            raise StageError(f"{fetching.where}: {shown!r} of {commit}: {problem}; use `ignore`")
        return None if unpacking.done(entry.digest) else commit.download(entry)

    left = source.maximum
    with (
        fetching.bar(f"fetch {commit}", len(tables), "tables") as advance,
        _in_order(fetch, tables, fetching.workers) as paths,
    ):
        for (shown, entry), path in zip(tables, paths, strict=True):

            def whole(entry: Entry = entry, path: Path | None = path) -> Path:
                return path or commit.download(entry)

            files = unpacking.unpack(shown, entry.digest, whole, left)
            yield from files
            advance(1)
            left = None if left is None else left - len(files)
            if left == 0:
                return


@contextmanager
def _in_order(work: Callable[[T], R], items: list[T], threads: int) -> Iterator[Iterator[R]]:
    """Results in the order of the items, by threads that are never far ahead of what is taken."""
    waiting: list[Future[R]] = []
    rest = iter(items)

    def results(pool: ThreadPoolExecutor) -> Iterator[R]:
        waiting.extend(pool.submit(work, item) for item in islice(rest, 2 * threads))
        while waiting:
            result = waiting.pop(0).result()
            waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield result

    with ThreadPoolExecutor(threads, thread_name_prefix="hub") as pool:
        try:
            yield results(pool)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _subset(source: HubSource, commit: Commit, fetching: Fetching) -> list[Named]:
    """The files of the subset, each with its path in the subset's folder."""
    everything = [(entry.path, entry) for entry in commit.entries]
    if source.subset is None:
        return everything
    configurations = _configurations(commit)
    if source.subset in configurations:
        try:
            patterns = Patterns(configurations[source.subset])
        except ValueError as error:
            raise StageError(
                f"{fetching.where}.subset: configuration {source.subset!r} of {commit} has "
                f"{error}; name a folder, or leave `subset` out and use `include`"
            ) from None
        return [pair for pair in everything if patterns.match(pair[0])]
    folder = source.subset.strip("/") + "/"
    inside = [(p.removeprefix(folder), entry) for p, entry in everything if p.startswith(folder)]
    if not inside:
        folders = sorted({path.split("/")[0] for path, _ in everything if "/" in path})
        raise StageError(
            f"{fetching.where}.subset: {commit} has no configuration or folder {source.subset!r}; "
            f"configurations: {', '.join(sorted(configurations)) or 'none'}; folders: "
            f"{', '.join(folders[:20]) or 'none'}"
        )
    return inside


def _configurations(commit: Commit) -> dict[str, list[str]]:
    """Name -> patterns of the files, from the YAML at the head of the dataset's card."""
    card = next((entry for entry in commit.entries if entry.path == "README.md"), None)
    if card is None:
        return {}
    text = commit.download(card).read_text("utf-8", "replace")
    head = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    try:
        data = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, ValueError, RecursionError):
        commit.site.log(f"the card of {commit} has no valid YAML: its configurations are unknown")
        return {}
    listed = data.get("configs") if isinstance(data, dict) else None
    return {
        str(configuration["config_name"]): _patterns(configuration)
        for configuration in (listed if isinstance(listed, list) else [])
        if isinstance(configuration, dict) and "config_name" in configuration
    }


def _patterns(configuration: dict[str, Any]) -> list[str]:
    """Patterns of all splits of a configuration: a text, a list, or a list or mapping of splits."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            for item in value:
                yield from texts(item.get("path") if isinstance(item, dict) else item)
        elif isinstance(value, dict):
            for item in value.values():
                yield from texts(item)

    folder = str(configuration.get("data_dir") or "").strip("/")
    patterns = list(texts(configuration.get("data_files"))) or ["**"]
    return [f"{folder}/{pattern}" if folder else pattern for pattern in patterns]
