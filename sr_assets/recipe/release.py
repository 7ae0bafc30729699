"""The section `release:` of a recipe: which models are released, where to, and in whose name.

Deciding on a release and making it is `assets/release.py`.
"""

from __future__ import annotations

from pydantic import Field

from sr_assets.recipe.sources import Place
from sr_assets.recipe.strict import Name, Strict
from sr_assets.stores.versions import VersionText


class Release(Strict):
    """What is released."""

    models: tuple[Name, ...] | None = Field(
        None, description="Models to release; every fusion and student when left out."
    )
    version: VersionText | None = Field(
        None,
        description="Version of the next release, such as 2.0.0; what changed decides when left "
        "out (docs/releases.md).",
    )
    author: str | None = Field(None, description="Who releases, for model cards.")
    registry: Place | None = Field(
        None,
        description="Folder of released models, also on an object store (s3://...); `registry` "
        "below the root when left out.",
    )
    hub: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][\w.-]*/(?:[\w.-]|\{model\})+$",
        description="Repository of `srd publish` and of the addresses in model cards, as "
        "owner/name; `{model}` in it stands for the model's name.",
    )

    def repository(self, model: str) -> str | None:
        """The hub repository of one model; None where the recipe names none."""
        return None if self.hub is None else self.hub.replace("{model}", model)
