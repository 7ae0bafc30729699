"""Networks by name: spandrel's own classes and our EDSR, built to be told again from their weights.

Reading weights files belongs to `experts/loading.py`, and our own students have their own modules.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from spandrel import MAIN_REGISTRY, UnsupportedModelError
from torch import nn

from sr_models.experts import edsr

#: Architecture name -> module of its class; the class is named like the architecture.
_MODULES = {
    "EDSR": "sr_models.experts.edsr",
    "RealPLKSR": "spandrel.architectures.PLKSR",
    **{
        name: f"spandrel.architectures.{name}"
        for name in (
            "ATD", "CRAFT", "Compact", "DAT", "DCTLSA", "DITN", "DRCT", "FDAT", "GRL", "HAT",
            "MoSR", "OmniSR", "PLKSR", "RCAN", "RGT", "SAFMN", "SPAN", "SeemoRe", "SwiftSRGAN",
            "SwinIR",
        )
    },
}  # fmt: skip

ARCHITECTURES = tuple(sorted(_MODULES))

_SCALE_NAMES = ("upscale", "scale", "upscaling_factor", "up_scale", "upscale_factor")
_CHANNEL_NAMES = (
    "in_chans", "in_channels", "out_channels", "num_in_ch", "num_out_ch", "in_nc", "out_nc",
    "in_ch", "out_ch", "n_colors", "inp_channels",
)  # fmt: skip

#: What spandrel takes for granted when it loads, where the class's own default is another.
_LOADED_AS: dict[str, dict[str, Any]] = {"GRL": {"stripe_shift": True}}

#: Hyper-parameters that change neither the function nor the state dict of a network in eval mode.
_HARMLESS = frozenset(
    ("drop_rate", "attn_drop_rate", "drop_path_rate", "drop_path", "dropout", "dropout_rate",
     "use_checkpoint", "use_chk", "fairscale_checkpoint", "offload_to_cpu", "img_size", "bias")
)  # fmt: skip


def build_network(architecture: str, scale: int, args: Mapping[str, Any]) -> nn.Module:
    """A new network with random weights: float [B,3,h,w] in [0,1] to [B,3,h·scale,w·scale].

    From its bare `state_dict()`, `spandrel.ModelLoader` (after `sr_models.experts.edsr.register()`)
    makes the very same function; arguments for which that is not so are refused.

    Args:
        architecture: one of `ARCHITECTURES`.
        scale: upscaling factor; goes to the constructor under its own name for it.
        args: further arguments of the constructor. Channels are 3 in and out when left out.

    Raises:
        ValueError: unknown architecture or argument, or spandrel would load another function from
            these weights; the message names the argument and the mend.

    >>> describe(build_network("Compact", 4, {"num_feat": 16, "num_conv": 2}))
    12163
    """
    if architecture not in _MODULES:
        raise ValueError(
            f"architecture {architecture!r} is not known{_nearest(architecture, ARCHITECTURES)}: "
            f"choose one of {', '.join(ARCHITECTURES)}"
        )
    cls = getattr(importlib.import_module(_MODULES[architecture]), architecture)
    module = cls(**_arguments(architecture, cls, scale, dict(args)))
    if architecture == "GRL":
        # spandrel reads window, stripe and anchor sizes from these; GRL itself does not store them.
        for name in ("table_w", "table_sh", "index_sh_a2w"):
            module.register_buffer(name, getattr(module, name), persistent=True)
    _check_told_again(architecture, module)
    return module


def describe(module: nn.Module) -> int:
    """Number of parameters (buffers are not counted)."""
    return sum(p.numel() for p in module.parameters())


def constructor_arguments(architecture: str) -> dict[str, Any]:
    """Name -> default (`inspect.Parameter.empty` where it is required) of a constructor."""
    cls = getattr(importlib.import_module(_MODULES[architecture]), architecture)
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {p.name: p.default for p in parameters}


def _arguments(
    architecture: str, cls: type[nn.Module], scale: int, args: dict[str, Any]
) -> dict[str, Any]:
    known = constructor_arguments(architecture)
    for name in args:
        if name not in known:
            raise ValueError(
                f"{architecture} has no argument {name!r}{_nearest(name, known)}: it takes "
                f"{', '.join(known)}"
            )
    scale_name = next(name for name in _SCALE_NAMES if name in known)
    if args.get(scale_name, scale) != scale:
        raise ValueError(f"{architecture}: {scale_name} {args[scale_name]} but scale is {scale}")
    filled: dict[str, Any] = {name: 3 for name in _CHANNEL_NAMES if name in known}
    if known.get("upsampler", None) == "":  # the class's default does not enlarge at all
        filled["upsampler"] = "pixelshuffle"
    filled.update(_LOADED_AS.get(architecture, {}))
    filled.update(args)
    filled[scale_name] = scale
    missing = [n for n, d in known.items() if d is inspect.Parameter.empty and n not in filled]
    if missing:
        raise ValueError(f"{architecture} needs {', '.join(missing)}: give them in `args`")
    return filled


def _nearest(name: str, names: Iterable[str]) -> str:
    lower = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), lower, 1, 0.5)
    return f" (did you mean {lower[near[0]]}?)" if near else ""


def _check_told_again(architecture: str, module: nn.Module) -> None:
    """Loads the weights as spandrel would and compares what it took the network for."""
    edsr.register()
    with torch.random.fork_rng(devices=[]):
        try:
            loaded = MAIN_REGISTRY.load(dict(module.state_dict()))
        except UnsupportedModelError:
            raise ValueError(
                f"{architecture}: spandrel does not recognise weights of these `args`"
            ) from None
        except (RuntimeError, ValueError, AssertionError, KeyError) as error:
            raise ValueError(
                f"{architecture}: spandrel cannot load weights of these `args` again: "
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from error
    if type(loaded.model) is not type(module):
        raise ValueError(
            f"{architecture}: spandrel takes weights of these `args` for "
            f"{type(loaded.model).__name__}"
        )
    asked, told = _hyperparameters(module), _hyperparameters(loaded.model)
    wrong = [n for n in asked if n in told and asked[n] != told[n] and n not in _HARMLESS]
    if wrong:
        details = ", ".join(f"{n} {told[n]!r} instead of {asked[n]!r}" for n in wrong)
        raise ValueError(
            f"{architecture}: the weights do not tell these `args`, spandrel would load {details}"
        )


def _hyperparameters(module: nn.Module) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    return {name: plain(value) for name, value in getattr(module, "hyperparameters", {}).items()}
