"""Which image files a source of the recipe names, and how to tell cheaply that they are the same.

No file is opened here: what is in them is judged by `sr_assets.pictures`.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.models import BuiltinSource, FolderSource, ImageSource
from sr_assets.storage import MARKER

#: Endings, in lower case, of what counts as an image. HEIC and JPEG XL cannot be read and are
#: listed all the same: a photo in quarantine is seen, one that is ignored is missed.
EXTENSIONS = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"}
    | {".gif", ".avif", ".avifs", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf"}
    | {".j2c", ".heic", ".heif", ".jxl"}
)
#: File systems stop at 255; a file that is being taken has a few more for its temporary name.
_LONGEST_NAME = 240


@dataclass(frozen=True)
class SourceFile:
    """One source file; `shown` is its relative posix path, `problem` why it cannot be taken."""

    path: Path
    shown: str
    problem: str = ""


@dataclass
class Found:
    """What a source holds: sorted files, and what was passed over."""

    files: list[SourceFile] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)


def find(source: ImageSource, where: str) -> Found:
    """Every image of a source.

    Raises:
        StageError: there is none, or the source itself is missing.
    """
    if isinstance(source, BuiltinSource):
        return _builtin(source, where)
    folder = Path(source.path)
    if not folder.exists():
        raise StageError(
            f"{where}.path: folder {folder} does not exist; create it or mend the path"
        )
    if not folder.is_dir():
        raise StageError(f"{where}.path: {folder} is a file; name the folder that holds the images")
    found = _scan(folder, source.include)
    if not found.files:
        raise StageError(
            f"{where}: no image in {folder} matches include {list(source.include)} "
            f"({found.ignored.total()} other files); put images there or mend `include`"
        )
    return found


def _scan(folder: Path, include: tuple[str, ...]) -> Found:
    """Images below `folder`, sorted by relative path.

    Hidden entries are skipped. Links to folders are not followed: what they show inside `folder`
    has its own name there, and so no loop can arise. Links to files count where they stay inside.
    Outputs of ours below `folder` are no photos: each would be an input of the next.
    """
    found = Found()
    root = folder.resolve()
    waiting = [root]
    while waiting:
        current = waiting.pop()
        try:
            entries = list(os.scandir(current))
        except OSError as error:
            shown, _ = _show(current, root)
            found.files.append(
                SourceFile(
                    current, shown, f"folder cannot be listed: {(error.strerror or '').lower()}"
                )
            )
            continue
        if current != root and any(entry.name == MARKER for entry in entries):
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            if entry.is_symlink() and _leads_away(path, root):
                found.links.append(_show(path, root)[0])
            elif entry.is_dir():
                waiting.append(path)
            elif path.suffix.lower() not in EXTENSIONS or not entry.is_file():
                # A pipe or a dangling link would block or fail when it is opened.
                found.ignored[path.suffix.lower() or "no extension"] += 1
            else:
                shown, problem = _show(path, root)
                if any(fnmatchcase(shown, pattern) for pattern in include):
                    found.files.append(SourceFile(path, shown, problem))
    found.files.sort(key=lambda file: file.shown)
    found.links.sort()
    return found


def _leads_away(link: Path, root: Path) -> bool:
    """Whether a link shows a folder, something outside `root`, or only itself."""
    try:
        target = link.resolve()
        return target.is_dir() or not target.is_relative_to(root)
    except (OSError, RuntimeError):  # how Python says that links go round in a circle
        return True


def _show(path: Path, root: Path) -> tuple[str, str]:
    """Relative posix path as text, and a problem where the name is no text."""
    relative = path.relative_to(root).as_posix()
    try:
        relative.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(relative).decode("utf-8", "backslashreplace")
        return shown, "file name is not valid UTF-8; rename it"
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        return relative, f"file name is longer than {_LONGEST_NAME} bytes; rename it"
    return relative, ""


def _builtin(source: BuiltinSource, where: str) -> Found:
    folder = _builtin_folder()
    if folder is None:
        raise StageError(f"{where}: scikit-image is not installed; run `pip install scikit-image`")
    found = Found()
    for name in sorted(set(source.images)):
        if "/" in name or "\\" in name:
            raise StageError(f"{where}.images: {name!r} is a path; give a file name alone")
        path = folder / name
        if path.suffix.lower() not in EXTENSIONS or not path.is_file():
            known = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS)
            raise StageError(
                f"{where}.images: scikit-image has no image {name!r}; there are: {', '.join(known)}"
            )
        found.files.append(SourceFile(path, name))
    return found


def _builtin_folder() -> Path | None:
    """Data folder of the installed scikit-image, found without importing it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "data"


def fingerprint(source: ImageSource) -> dict[str, str]:
    """What tells that the files of a source are those of last time, without reading them."""
    if isinstance(source, FolderSource):
        folder = Path(source.path)
        if not folder.is_dir():
            return {str(folder): "missing"}
        return dict(_stamps(_scan(folder, source.include)))
    builtin = _builtin_folder()
    if builtin is None:
        return {"scikit-image": "missing"}
    sizes = {}
    for name in source.images:
        path = builtin / name
        sizes[name] = str(path.stat().st_size) if path.is_file() else "missing"
    return sizes


def _stamps(found: Found) -> Iterator[tuple[str, str]]:
    for file in found.files:
        try:
            stat = file.path.stat()
        except OSError:
            yield file.shown, "unreadable"
        else:
            yield file.shown, f"{stat.st_size}-{stat.st_mtime_ns}"
