"""Which number the next release of a model gets: what changed decides, or the recipe within that.

What a version is as such is `versions.py`; keeping releases is `registry.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sr_assets.lineage.stage import StageError
from sr_assets.stores.release_manifest import Manifest
from sr_assets.stores.versions import FIRST, Change, Version, parse_version


def next_version(
    earlier: Sequence[Manifest], facts: Mapping[str, Any], identity: str, pinned: str | None
) -> Version:
    """The version of what `facts` describe.

    Args:
        earlier: every version of the model, the highest last.
        facts: the manifest as far as it is known: architecture, scale, content; interface, weights.
        identity: digest of the files.
        pinned: the version that the recipe asks for.

    Raises:
        StageError: `pinned` is taken by other files, is below the newest version, or promises less
            change than there is.
    """
    wanted = None if pinned is None else parse_version(pinned)
    if not earlier:
        return wanted or FIRST
    newest = earlier[-1]
    change = _change(newest, facts)
    lowest = newest.number.after(change)
    if wanted is None:
        return lowest
    mend = f"leave it out, or name {lowest} or a higher one"
    for taken in (m for m in earlier if m.number == wanted):
        if taken.identity == identity:
            return wanted
        raise StageError(
            f"release.version: {taken.name} is released with other files, and a version never "
            f"changes: {mend}"
        )
    if wanted < newest.number:
        raise StageError(
            f"release.version: {wanted} is below {newest.name}, and the newest version never moves "
            f"backwards: {mend}"
        )
    if wanted < lowest:
        raise StageError(f"release.version: since {newest.name} {_CHANGED[change]}: {mend}")
    return wanted


_CHANGED = {
    "major": "the architecture, the scale or the inputs changed",
    "minor": "the weights changed",
    "patch": "files changed",
}


def _change(newest: Manifest, facts: Mapping[str, Any]) -> Change:
    """The largest thing that changed since the newest version, as far as that one tells."""
    now = {**facts.get("interface", {}), **{k: facts[k] for k in ("architecture", "scale")}}
    before = {**newest.interface, "architecture": newest.architecture, "scale": newest.scale}
    if any(now[key] != before[key] for key in now.keys() & before.keys()):
        return "major"
    weights = facts.get("weights")
    same = newest.content == facts["content"] or (weights and newest.weights == weights)
    return "patch" if same else "minor"
