"""A trained model on its way into files: what makers of files are given, and what they give back.

Which files there are is `export.py`; measuring them is `sr_models/export/parity.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sr_assets.assets.trained import LoadedModel
    from sr_models.experts.loading import Expert
    from sr_models.export.parity import Gate, Run

#: What files say of a model whose recipe states no licence.
NO_LICENCE = "not stated"


@dataclass(frozen=True)
class Sample:
    """One held-out pair, and what a fusion takes beside LR."""

    lr: Tensor
    """float32 [1, 3, h, w] in [0, 1]."""
    hr: np.ndarray
    """uint8 [H, W, 3]."""
    name: str
    """`<dataset>/<number of the patch>`."""
    sr: Mapping[str, Tensor] = field(default_factory=dict)
    """Expert -> float32 [1, 3, H, W]."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """Expert -> float32 [1, C, h, w]."""


@dataclass(frozen=True)
class Subject:
    """A trained model, and what its files say and are measured on."""

    name: str
    model: LoadedModel
    """On the CPU."""
    state: Mapping[str, Tensor]
    """Tensors of the network that people run: fused, merged kernels brought up to date."""
    metadata: Mapping[str, str]
    """Strings for weights files."""
    licence: str | None
    samples: tuple[Sample, ...]
    """Held-out pairs, at least one."""
    pairs: Callable[[int, int], tuple[Sample, ...]]
    """(count, split) -> at most so many pairs of it, spread evenly; without experts."""
    experts: Mapping[str, Expert]
    """The experts of a fusion, in its order, with the features that it takes."""
    scratch: Path
    """Folder for files of no other use."""
    log: Callable[[str], None]

    @property
    def properties(self) -> dict[str, str]:
        """Strings for graphs."""
        return {
            "model": self.name,
            "architecture": str(self.model.description["architecture"]),
            "licence": self.licence or NO_LICENCE,
        }

    def file(self, ending: str, what: str = "") -> str:
        """`<model>_x<scale>[_<what>].<ending>`, the one convention for names of files."""
        return file_name(self.name, self.model.scale, ending, what)


def file_name(model: str, scale: int, ending: str, what: str = "") -> str:
    """`<model>_x<scale>[_<what>].<ending>`; `what` is left out for weights as they were trained."""
    return f"{model}_x{scale}{f'_{what}' if what else ''}.{ending}"


@dataclass(frozen=True)
class Made:
    """A file that was made, not yet measured."""

    file: str
    content: bytes
    format: str
    """Such as safetensors or ONNX."""
    precision: str
    """Such as fp32."""
    backend: str
    """What it was checked on."""
    run: Run | None
    """Runs it on a sample; None where nothing on this machine can."""
    gate: Gate
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON values of its own for the report."""
    counts: bool = True
    """Whether its bytes are content; not where they name the code that made them."""


@dataclass(frozen=True)
class Refused:
    """A file that could not be made, and why in one line."""

    file: str
    reason: str
