"""The base of every recipe section, the forms of names, and the mark of what changes no result.

The sections themselves are `models.py`, `networks.py` and `training.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

LONGEST_NAME = 60  # characters
DatasetName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=LONGEST_NAME)
]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=LONGEST_NAME)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

#: Marks a field that cannot change a result: it stays outside every code version.
OUTSIDE_LINEAGE: dict[str, Any] = {"lineage": False}


class Strict(BaseModel):
    """Base of every recipe section: unknown fields are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
