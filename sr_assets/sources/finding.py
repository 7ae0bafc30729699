"""The one way to the images of a source: found where they lie, or fetched first.

No image is opened here: what is in them is judged by `sr_assets.pictures`.
"""

from __future__ import annotations

import importlib

from sr_assets.recipe.sources import ImageSource
from sr_assets.sources.files import Fetching, Found

#: Kind of source -> module with `find(source, fetching)` and `fingerprint(source)`.
_KINDS = {
    "folder": "sr_assets.sources.folder",
    "builtin": "sr_assets.sources.builtin",
    "hub": "sr_assets.sources.hub",
    "archive": "sr_assets.sources.archive",
    "url_list": "sr_assets.sources.url_list",
}


def find(source: ImageSource, fetching: Fetching) -> Found:
    """Every image of a source, as files on this machine.

    Raises:
        StageError: there is none, the source itself is missing, or it cannot be fetched.
    """
    found: Found = importlib.import_module(_KINDS[source.kind]).find(source, fetching)
    return found


def fingerprint(source: ImageSource) -> dict[str, str]:
    """What tells that the files of a source are those of last time, without reading them."""
    stamps: dict[str, str] = importlib.import_module(_KINDS[source.kind]).fingerprint(source)
    return stamps


def modules(source: ImageSource) -> tuple[str, ...]:
    """Where the code version of a source starts."""
    return (_KINDS[source.kind],)
