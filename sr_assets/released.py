"""What the releases in a registry were made from, as far back as it is still there.

Releases themselves are `releases.py` and `stores/registry.py`; nothing is removed here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from upath import UPath

from sr_assets.assets.bronze import KEY as BRONZE
from sr_assets.lineage.stage import Ref
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output
from sr_assets.stores import registry

#: `asset[partition]` and data version.
Content = tuple[str, str]


def behind_releases(recipe: Recipe, root: UPath, outputs: Iterable[Output]) -> set[Content]:
    """The content of every output that a release was made from.

    Args:
        recipe: whose registry is read, and the one in the root, where that is another.
        root: folder of all outputs.
        outputs: whole ones in the root, with the markers of this program.

    That is the export, what its manifest names by digest (training data, caches, benchmarks), and
    all that these were made from: an output that is gone ends the chain behind it.

    Raises:
        StageError: a manifest is damaged.
    """
    made_from: dict[Content, set[Content]] = defaultdict(set)
    for output in outputs:
        inputs = output.marker.get("inputs", {})
        made_from[_name(output), output.data_version] |= set(inputs.items())
    folders = {str(f): f for f in (root / registry.FOLDER, registry.registry_folder(recipe, root))}
    found = {content for folder in folders.values() for content in _in_manifests(folder)}
    waiting = list(found)
    while waiting:
        new = made_from[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def _in_manifests(folder: UPath) -> Iterator[Content]:
    for model in registry.models(folder):
        for release in registry.versions(folder, model):
            manifest = release.manifest
            yield f"model/{model}/export", manifest.content
            yield from manifest.data.items()
            yield from ((str(Ref(BRONZE, b)), v) for b, v in manifest.benchmarks.items())


def _name(output: Output) -> str:
    return str(Ref(output.marker["asset"], output.marker.get("partition")))
