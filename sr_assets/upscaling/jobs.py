"""Which picture goes where: a file, a folder with its tree, a pattern, or a stream.

Only names are looked at here; what is in the files is not.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sr_assets.lineage.stage import StageError
from sr_assets.upscaling.formats import READABLE, Format, demanded, format_of

#: As INPUT standard input, as OUTPUT standard output.
STREAM = Path("-")


@dataclass(frozen=True)
class Job:
    """One picture."""

    source: Path
    target: Path
    format: Format


def find_jobs(source: Path, output: Path, wanted: Format | None) -> list[Job]:
    """Every picture that `source` names and where it goes, in a fixed order.

    Args:
        source: a file, a folder, a pattern with `*`, `?` or `[...]` (`**` for any depth), or `-`.
        output: for one picture a file or a folder, for several a folder that gets their tree; `-`.
        wanted: what is written; None for what each name says, and PNG where that is not written.

    Raises:
        StageError: there are no pictures, or an output is an input, or they do not go together.
    """
    if output == STREAM and source != STREAM and not source.is_file():
        raise StageError(f"standard output takes one picture, and {source} is not a file")
    if source == STREAM or source.is_file():
        jobs = [_file_job(source, output, wanted)]
    elif source.is_dir():
        jobs = _tree_jobs(source, _pictures(source, output.resolve()), output, wanted, source)
    elif glob.has_magic(str(source)):
        base, found = _matching(source, output.resolve())
        jobs = _tree_jobs(base, found, output, wanted, source)
    else:
        raise StageError(f"there is no file or folder {source}")
    inputs = {job.source.resolve() for job in jobs}
    for job in jobs:
        if job.target != STREAM and job.target.resolve() in inputs:
            raise StageError(f"{job.target} is an input itself: name another output")
    return jobs


def _file_job(source: Path, output: Path, wanted: Format | None) -> Job:
    if output == STREAM:
        return Job(source, output, wanted or format_of(source) or demanded(Path("-.png")))
    name = Path("picture.png") if source == STREAM else Path(source.name)
    into_folder = output.is_dir() or not output.suffix
    target = output / _output_name(name, wanted) if into_folder else output
    found = demanded(target)
    if wanted is not None and wanted != found:
        raise StageError(f"{target} is a name for {found.name}, and --format says {wanted.name}")
    return Job(source, target, found)


def _tree_jobs(
    base: Path, found: list[Path], output: Path, wanted: Format | None, told: Path
) -> list[Job]:
    if output.is_file():
        raise StageError(f"{output} is a file, but {told} is a folder or pattern: name a folder")
    if output.resolve() == base.resolve():
        raise StageError(f"{output} is the input folder itself: name another folder")
    if not found:
        raise StageError(f"{told} holds no pictures ({', '.join(sorted(READABLE))})")
    names = [path.relative_to(base) for path in found]
    targets = [_output_name(name, wanted) for name in names]
    folded = [str(target).casefold() for target in targets]
    jobs = []
    for path, name, target, key in zip(found, names, targets, folded, strict=True):
        # photo.gif beside photo.png: the full name keeps both.
        kept = target if folded.count(key) == 1 else Path(f"{name}{target.suffix}")
        jobs.append(Job(path, output / kept, demanded(kept)))
    return jobs


def _pictures(folder: Path, output: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if _is_input(path, folder, output)]


def _matching(pattern: Path, output: Path) -> tuple[Path, list[Path]]:
    """The folder before the first wildcard, and what the pattern finds below it."""
    parts = pattern.parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:fixed])
    rest = str(Path(*parts[fixed:]))
    found = base.glob(rest)
    return base, sorted({path for path in found if _is_input(path, base, output)})


def _is_input(path: Path, base: Path, output: Path) -> bool:
    # Below the output lie the results of an earlier run, unless all of the inputs lie there.
    below = output.is_relative_to(base.resolve())
    of_earlier_run = below and path.resolve().is_relative_to(output)
    return path.suffix.lower() in READABLE and path.is_file() and not of_earlier_run


def _output_name(name: Path, wanted: Format | None) -> Path:
    found = format_of(name)
    if wanted is None:
        return name if found is not None else name.with_suffix(".png")
    return name if found == wanted else name.with_suffix(wanted.suffixes[0])


def missing(jobs: list[Job]) -> Iterator[Job]:
    """Those whose output is not there yet; a stream never is."""
    return (job for job in jobs if job.target == STREAM or not job.target.exists())
