"""Whether the images of a benchmark are those of the last night and of its source on this machine.

Nothing is measured here, and no network is asked; what a night measures is `nights.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sr_assets.assets.bronze import KEY as BRONZE
from sr_assets.assets.own_lr import MARK
from sr_assets.lineage.progress import terminal_bar
from sr_assets.lineage.stage import Ref, StageError
from sr_assets.recipe.sources import ArchiveSource, Dataset, FolderSource, ImageSource
from sr_assets.sources import archive
from sr_assets.sources.files import Fetching
from sr_assets.storage import cache_folder, hash_file
from sr_assets.stores.manifest import ManifestRow

#: Bytes of the sources of all benchmarks that one night reads again.
MOST_BYTES = 4 * 10**9
#: What the fingerprint of a list of URLs says of time alone.
_TIME_OF_LIST = "list"


@dataclass
class Checked:
    """What was found wrong with the images of benchmarks, and what was not looked at."""

    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    room: int = MOST_BYTES
    """Bytes that may still be read."""


@dataclass(frozen=True)
class _Part:
    """The HR or the LR of a benchmark: its source now, and what bronze took from it."""

    benchmark: str
    mark: str
    source: ImageSource
    now: Mapping[str, str]
    """Fingerprint of the source."""
    before: Mapping[str, str]
    """The same when bronze was made."""
    digests: Mapping[str, str]
    """File -> sha256, of those that bronze read, quarantined ones too."""
    measured: frozenset[str]
    """Files that are images of the benchmark."""
    listed: frozenset[str]
    """Files that bronze has a row for."""

    def line(self, name: str, what: str, mend: str) -> str:
        """One problem with one file."""
        build = f"run `srd build '{Ref(BRONZE, self.benchmark)}'`"
        return f"benchmark {self.benchmark}: {self.mark}{name} {what}; {mend}, or {build}"


def measured_images(rows: Iterable[ManifestRow]) -> dict[str, str]:
    """Image -> sha256, of the images of a benchmark and of the LR that comes with them."""
    good = [row for row in rows if row.ok]
    found = {row.path: row.sha256 for row in good}
    return found | {MARK + row.lr: row.lr_sha256 or "" for row in good if row.lr}


def compare_with_last_night(
    benchmark: str, now: Mapping[str, str], before: Mapping[str, str], checked: Checked
) -> None:
    """Names every image that is another one, gone or new since the last night."""
    for image in sorted(now.keys() | before.keys()):
        if now.get(image) == before.get(image):
            continue
        what = "is another image than in the last night"
        if image not in now:
            what = "was there in the last night and is gone"
        elif image not in before:
            what = "was not there in the last night"
        checked.problems.append(f"benchmark {benchmark}: {image} {what}")


def compare_with_source(
    benchmark: str,
    dataset: Dataset,
    now: Mapping[str, str],
    before: Mapping[str, str],
    rows: Iterable[ManifestRow],
    checked: Checked,
) -> None:
    """Names every file of a benchmark that is not what bronze saw.

    Args:
        benchmark: its name.
        dataset: where its images come from.
        now: fingerprint of that.
        before: the same when bronze was made.
        rows: of the manifest of bronze.
        checked: gets what was found.

    Files of a folder are read, whatever their time of change says, as far as `checked.room` goes;
    those whose time has moved come first. An archive is unpacked and read when its time has moved.
    Of other sources only the fingerprint is compared.
    """
    for part in _parts(benchmark, dataset, now, before, list(rows)):
        if isinstance(part.source, FolderSource):
            checked.problems += _in_folder(part, Path(part.source.path), checked)
        elif isinstance(part.source, ArchiveSource):
            checked.problems += _in_archive(part, part.source, checked)
        else:
            checked.problems += _elsewhere(part)


def _parts(
    benchmark: str,
    dataset: Dataset,
    now: Mapping[str, str],
    before: Mapping[str, str],
    rows: list[ManifestRow],
) -> Iterator[_Part]:
    paired = [row for row in rows if row.lr]
    digests = {row.path: row.sha256 for row in rows if not row.path.startswith(MARK)}
    lr_digests = {row.lr: row.lr_sha256 for row in paired}
    for mark, source, known, measured in (
        ("", dataset.source, digests, {row.path for row in rows if row.ok}),
        (MARK, dataset.lr, lr_digests, {row.lr for row in paired if row.ok}),
    ):
        if source is not None:
            yield _Part(
                benchmark,
                mark,
                source,
                _of(now, mark),
                _of(before, mark),
                {str(name): digest for name, digest in known.items() if digest},
                frozenset(map(str, measured)),
                frozenset(map(str, known)),
            )


def _of(stamps: Mapping[str, str], mark: str) -> dict[str, str]:
    """The part of a fingerprint that is of HR, or of LR."""
    return {
        name.removeprefix(mark): stamp
        for name, stamp in stamps.items()
        if name.startswith(MARK) == bool(mark)
    }


def _in_folder(part: _Part, folder: Path, checked: Checked) -> Iterator[str]:
    if not folder.is_dir():
        yield part.line(f"folder {folder}", "is gone", "put it back")
        return
    yield from _gone(part, part.now.keys())
    for name in sorted(part.now.keys() - part.before.keys()):
        yield part.line(name, "was added to its source since bronze was made", "take it away")
    # The suspicious ones first.
    both = sorted(part.now.keys() & part.before.keys() & part.digests.keys())
    both.sort(key=lambda name: part.now[name] == part.before[name])
    unread = 0
    for name in both:
        try:
            size = (folder / name).stat().st_size
            if size > checked.room:
                unread += 1
                continue
            checked.room -= size
            same = hash_file(folder / name) == part.digests[name]
        except OSError as error:
            yield part.line(name, f"cannot be read ({error.strerror})", "mend that")
            continue
        if not same:
            yield _changed(part, name)
    if unread:
        checked.left_out.append(
            f"benchmark {part.benchmark}: {unread} files of {folder} were not read again: a night "
            f"reads {MOST_BYTES / 1e9:g} GB of sources at most"
        )


def _in_archive(part: _Part, source: ArchiveSource, checked: Checked) -> Iterator[str]:
    if part.now == part.before:
        return
    file = Path(source.path)
    if not file.is_file():
        yield part.line(f"archive {file}", "is gone", "put it back")
        return
    try:
        if file.stat().st_size > checked.room:
            checked.left_out.append(
                f"benchmark {part.benchmark}: {file} was touched and is not compared: a night "
                f"reads {MOST_BYTES / 1e9:g} GB of sources at most"
            )
            return
        checked.room -= file.stat().st_size
        if source.sha256 and hash_file(file) == source.sha256:
            return
        with TemporaryDirectory(prefix="srd-night-") as scratch:
            found = archive.find(source, _fetching(part, Path(scratch)))
            members = {member.shown: member for member in found.files}
            yield from _gone(part, members.keys())
            for name, member in sorted(members.items()):
                if name not in part.listed and not part.mark:
                    yield part.line(name, "was added to its archive", "take it away")
                elif name in part.digests and (
                    member.problem or hash_file(member.path) != part.digests[name]
                ):
                    yield _changed(part, name)
    except (OSError, StageError) as error:
        yield part.line(f"archive {file}", f"cannot be compared ({error})", "mend that")


def _elsewhere(part: _Part) -> Iterator[str]:
    """A source of which only the fingerprint is known: the hub, a list of URLs, a package."""
    names = sorted(
        name
        for name in part.now.keys() | part.before.keys()
        if part.now.get(name) != part.before.get(name)
    )
    if "list.sha256" in part.now:  # touched, or written again with the same bytes
        names = [name for name in names if name != _TIME_OF_LIST]
    for name in names:
        yield _changed(part, name)


def _gone(part: _Part, there: Iterable[str]) -> Iterator[str]:
    for name in sorted(part.measured.difference(there)):
        yield part.line(name, "is no longer in its source", "put it back")


def _changed(part: _Part, name: str) -> str:
    return part.line(name, "changed in its source since bronze was made", "put the image back")


def _fetching(part: _Part, scratch: Path) -> Fetching:
    def log(line: str) -> None:
        """What is said of an archive was said when bronze was made."""

    def bar(label: str, total: int, unit: str) -> Any:
        return terminal_bar(log, label, total, unit)

    where = f"benchmarks.{part.benchmark}.{'lr' if part.mark else 'source'}"
    return Fetching(where, scratch, cache_folder() / "sources", 1, log, bar)
