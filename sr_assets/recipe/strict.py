"""The base of every recipe section, and the mark of what cannot change a result.

The sections themselves are `models.py` and `training.py`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

#: Marks a field that cannot change a result: it stays outside every code version.
OUTSIDE_LINEAGE: dict[str, Any] = {"lineage": False}


class Strict(BaseModel):
    """Base of every recipe section: unknown fields are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
