"""Our architectures in spandrel's registry, so that `ModelLoader` opens our and released files.

Networks tell by themselves what they are (`detect`, `canonical`, `options`); loading a file as an
expert, with what running it asks for, is `experts/loading.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from typing import Any

from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchSupport,
    ImageModelDescriptor,
    ModelTiling,
    SizeRequirements,
    StateDict,
)
from torch import Tensor, nn

from sr_models.experts import edsr
from sr_models.registry import get_architecture, modules

_LEARNT = ("detail_gain",)  # arguments that say where a weight starts


def register() -> None:
    """Makes `spandrel.ModelLoader` know every architecture of ours and EDSR; again, does nothing.

    Ours are asked before spandrel's own, since its detectors look at few names: RealPLKSR would go
    to its PLKSR, which cannot be exported to ONNX with DySample. Ours check names and shapes, so
    files of others, PLKSR and RealPLKSR with a LayerNorm among them, stay spandrel's. An id that
    another plug-in holds already stays that plug-in's.
    """
    edsr.register()
    for cls in classes():
        if cls.__name__ not in MAIN_REGISTRY:
            first = MAIN_REGISTRY.architectures("detection")[0].architecture.id
            MAIN_REGISTRY.add(
                ArchSupport.from_architecture(StudentArchitecture(cls), before=(first,))
            )


def classes() -> list[Any]:
    """The registered classes that can be told from weights; presets are none of their own."""
    found = [get_architecture(name) for name in modules("architecture")]
    return [cls for cls in found if isinstance(cls, type) and hasattr(cls, "detect")]


def class_of(name: str) -> Any:
    """The registered class that an architecture of ours is or, by its return type, builds.

    None for a factory that names no such class.
    """
    found = get_architecture(name)
    if isinstance(found, type):
        return found
    try:
        built = typing.get_type_hints(found).get("return")
    except (NameError, TypeError):  # imported for type checkers only; no function
        return None
    own = (n for n, m in modules("architecture").items() if m == getattr(built, "__module__", ""))
    return built if any(get_architecture(n) is built for n in own) else None


class StudentArchitecture(Architecture[nn.Module]):
    """Any class of `sr_models.registry` that has `detect` and `options`.

    Args:
        cls: the class; its name is the id.
    """

    def __init__(self, cls: Any) -> None:
        super().__init__(id=cls.__name__, detect=self._recognises)
        self._class = cls

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[nn.Module]:
        """A descriptor with the weights in it; names of older versions are mapped.

        Raises:
            ValueError: shapes are not those of this architecture.
            RuntimeError: a tensor is missing or left over.
        """
        state = getattr(self._class, "canonical", dict)(state_dict)
        options = self._class.options(state)
        model = self._class(**options)
        scale, channels = model.scale, model.hyperparameters.get("in_chans", 3)
        return ImageModelDescriptor(
            model,
            state,
            architecture=self,
            purpose="Restoration" if scale == 1 else "SR",
            tags=[*self._presets(options), *(["fused"] if options.get("fused_init") else [])],
            # As spandrel has it for RealPLKSR with GroupNorm.
            supports_half=not any(isinstance(m, nn.GroupNorm) for m in model.modules()),
            supports_bfloat16=True,
            scale=scale,
            input_channels=channels,
            output_channels=channels,
            size_requirements=SizeRequirements(
                minimum=getattr(model, "minimum_size", 1),
                multiple_of=getattr(model, "multiple_of", 1),
            ),
            tiling=(
                ModelTiling.SUPPORTED
                if getattr(model, "tileable", False)
                else ModelTiling.DISCOURAGED
            ),
        )

    def _recognises(self, state_dict: Mapping[str, Any]) -> bool:
        # Files of other programs hold other things beside tensors.
        tensors = {name: t for name, t in state_dict.items() if isinstance(t, Tensor)}
        return bool(self._class.detect(tensors))

    def _presets(self, options: Mapping[str, Any]) -> list[str]:
        """Names of the presets of this class that these options are, in what weights tell."""
        return [
            name
            for name, module in modules("architecture").items()
            if class_of(name) is self._class
            and (fields := _fields(importlib.import_module(module), name))
            and all(_plain(options.get(k, v)) == _plain(v) for k, v in fields.items())
        ]


def _fields(module: Any, name: str) -> dict[str, Any]:
    """The arguments of a preset, without those that are only where something learnt starts."""
    presets = getattr(module, "PRESETS", None)
    preset = presets.get(name) if isinstance(presets, Mapping) else None
    if not dataclasses.is_dataclass(preset):
        return {}
    found = {f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)}
    return {field: value for field, value in found.items() if field not in _LEARNT}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
