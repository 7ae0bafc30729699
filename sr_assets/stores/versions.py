"""Semantic versions of releases: what is a version, and which part of it a change moves.

Where versions are kept, and that none is made twice, is `registry.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator

Change = Literal["major", "minor", "patch"]
_FORM = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})")


class Version(NamedTuple):
    """Major, minor, patch; ordered as versions are."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def tag(self) -> str:
        """Its name on a hub, such as `v1.2.0`."""
        return f"v{self}"

    def after(self, change: Change) -> Version:
        """The next version where `change` is the largest thing that changed."""
        if change == "major":
            return Version(self.major + 1, 0, 0)
        if change == "minor":
            return Version(self.major, self.minor + 1, 0)
        return Version(self.major, self.minor, self.patch + 1)


FIRST = Version(1, 0, 0)


def parse_version(text: str) -> Version:
    """`1.2.0` or `v1.2.0`.

    Raises:
        ValueError: it is no version.
    """
    match = _FORM.fullmatch(text.removeprefix("v"))
    if match is None:
        raise ValueError(f"{text!r} is no version: write major.minor.patch, such as 1.2.0")
    return Version(*(int(part) for part in match.groups()))


def fits(version: Version, wanted: str) -> bool:
    """Whether `wanted` can mean `version`: `latest`, `1`, `1.2`, `1.2.0`; also with a v before."""
    if wanted == "latest":
        return True
    parts = wanted.removeprefix("v").split(".")
    return [str(part) for part in version][: len(parts)] == parts


def _plain(text: str) -> str:
    return str(parse_version(text))


#: A version in a recipe or a manifest, without the v.
VersionText = Annotated[str, AfterValidator(_plain)]
