"""Images of a folder of this machine, which stay where they are."""

from __future__ import annotations

from pathlib import Path

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.sources import FolderSource
from sr_assets.sources.files import Fetching, Found, scan, stamps


def find(source: FolderSource, fetching: Fetching) -> Found:
    """Every image of the folder.

    Raises:
        StageError: there is none, or no such folder.
    """
    folder, where = Path(source.path), fetching.where
    if not folder.exists():
        raise StageError(
            f"{where}.path: folder {folder} does not exist; create it or mend the path"
        )
    if not folder.is_dir():
        raise StageError(f"{where}.path: {folder} is a file; name the folder that holds the images")
    found = scan(folder, source.include)
    if not found.files:
        raise StageError(
            f"{where}: no image in {folder} matches include {list(source.include)} "
            f"({found.ignored.total()} other files); put images there or mend `include`"
        )
    return found


def fingerprint(source: FolderSource) -> dict[str, str]:
    """Size and time of change of every image."""
    folder = Path(source.path)
    return stamps(scan(folder, source.include)) if folder.is_dir() else {str(folder): "missing"}
