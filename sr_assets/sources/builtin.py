"""Photos that ship inside the installed scikit-image package."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.sources import BuiltinSource
from sr_assets.sources.files import EXTENSIONS, Fetching, Found, SourceFile


def find(source: BuiltinSource, fetching: Fetching) -> Found:
    """The images of the list.

    Raises:
        StageError: scikit-image is not installed, or has no image of such a name.
    """
    return Found(photos(source.images, fetching.where))


def photos(names: Iterable[str], where: str) -> list[SourceFile]:
    """The packaged photos of these names, sorted.

    Raises:
        StageError: as `find`; `where` is the field that the message names.
    """
    folder = _folder()
    if folder is None:
        raise StageError(f"{where}: scikit-image is not installed; run `pip install scikit-image`")
    found = []
    for name in sorted(set(names)):
        if "/" in name or "\\" in name:
            raise StageError(f"{where}.images: {name!r} is a path; give a file name alone")
        path = folder / name
        if path.suffix.lower() not in EXTENSIONS or not path.is_file():
            known = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS)
            raise StageError(
                f"{where}.images: scikit-image has no image {name!r}; there are: {', '.join(known)}"
            )
        found.append(SourceFile(path, name))
    return found


def fingerprint(source: BuiltinSource) -> dict[str, str]:
    """Size of every image: it changes with the package only."""
    folder = _folder()
    if folder is None:
        return {"scikit-image": "missing"}
    sizes = {}
    for name in source.images:
        path = folder / name
        sizes[name] = str(path.stat().st_size) if path.is_file() else "missing"
    return sizes


def _folder() -> Path | None:
    """Data folder of the installed scikit-image, found without importing it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "data"
