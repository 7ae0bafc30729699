"""Everything that a release was made from: the markers of outputs, followed to the sources.

It only reads markers below the root; which outputs a release reads directly is `release.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from upath import UPath

from sr_assets.lineage.stage import Ref
from sr_assets.storage import MARKER, Output, open_output
from sr_assets.stores.release_manifest import Upstream


def upstream(root: UPath, inputs: Mapping[Ref, Output]) -> dict[str, Upstream]:
    """`asset[partition]` -> what is known of that output, sorted by name.

    Where two versions of one output are behind a release (a teacher was trained on older data),
    the second is named with its data version. An output that is gone is named without its inputs.

    Args:
        root: folder of all outputs.
        inputs: the outputs that the release reads directly.
    """
    found: dict[str, Upstream] = {}
    waiting: list[tuple[str, str, Output | None]] = [
        (str(ref), output.data_version, output) for ref, output in inputs.items()
    ]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, version, output = waiting.pop()
        if (name, version) in seen:
            continue
        seen.add((name, version))
        output = output or _with_version(root, name, version)
        entry = Upstream(data_version=version)
        if output is not None:
            made_from = dict(output.marker.get("inputs", {}))
            entry = Upstream(
                data_version=version,
                code_version=output.marker.get("code_version"),
                inputs=tuple(made_from),
                sha256=output.marker.get("metadata", {}).get("sha256"),
            )
            waiting += [(below, digest, None) for below, digest in made_from.items()]
        found[name if name not in found else f"{name} {version}"] = entry
    return dict(sorted(found.items()))


def _with_version(root: UPath, name: str, version: str) -> Output | None:
    """The newest output of that name and content below the root."""
    asset, _, partition = name.removesuffix("]").partition("[")
    folder = root.joinpath(*asset.split("/"), *([partition] if partition else []))
    try:
        addresses = [f for f in folder.iterdir() if not f.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return None
    made = [output for f in addresses if (output := open_output(f)) is not None]
    return max(
        (output for output in made if output.data_version == version), key=_when, default=None
    )


def _when(output: Output) -> float:
    with suppress(FileNotFoundError, AttributeError, NotImplementedError):
        return float((output.path / MARKER).stat().st_mtime)
    return 0.0
