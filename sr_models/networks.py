"""Networks by name: ours, spandrel's own and EDSR, built to be told again from their weights.

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

from sr_models import plugin
from sr_models.one_line import one_line
from sr_models.registry import get_architecture, modules, unknown
from sr_models.spandrel_architectures import NAMES

#: Architecture name -> module of its class; the class is named like the architecture.
_MODULES = {
    **{name: f"spandrel.architectures.{name}" for name in NAMES},
    "EDSR": "sr_models.experts.edsr",
}

_SCALE_NAMES = ("upscale", "scale", "upscaling_factor", "up_scale", "upscale_factor")
_CHANNEL_NAMES = (
    "in_chans", "in_channels", "out_channels", "num_in_ch", "num_out_ch", "in_nc", "out_nc",
    "in_ch", "out_ch", "n_colors", "inp_channels",
)  # fmt: skip

#: What spandrel takes for granted when it loads, where the class's own default is another.
_LOADED_AS: dict[str, dict[str, Any]] = {"GRL": {"stripe_shift": True}}

_GATHERING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

#: RealCUGAN is another network at each scale.
_CUGAN = {2: "UpCunet2x", 3: "UpCunet3x", 4: "UpCunet4x"}

#: Hyper-parameters that change neither the function of given weights in eval mode nor their names.
_HARMLESS = frozenset(
    ("drop_rate", "attn_drop_rate", "drop_path_rate", "drop_path", "dropout", "dropout_rate",
     "use_checkpoint", "use_checkpointing", "use_chk", "fairscale_checkpoint", "offload_to_cpu",
     "attention_mode", "export_safe", "drop", "img_size", "bias",
     "detail_gain")  # the start of what is learnt
)  # fmt: skip

#: Class -> module whose output is the last feature map of LR size, of spandrel's networks that do
#: not call it `conv_after_body`; an index from the end as Python counts it.
_FEATURES = {
    "DCTLSA": "LR_conv", "FDAT": "conv_after", "Generator": "convblock", "MoESR": "blocks",
    "MoSR": "gblocks", "OmniSR": "output", "PLKSR": "feats.-2", "RCAN": "body",
    "RRDBNet": "model.1", "SAFMN": "feats", "SPAN": "conv_cat", "SRVGGNetCompact": "body.-2",
    "SeemoRe": "conv_2",
}  # fmt: skip


def architectures() -> tuple[str, ...]:
    """All names that `build_network` takes: ours, lower-case, then spandrel's and EDSR."""
    return (*modules("architecture"), *sorted(_MODULES))


def build_network(architecture: str, scale: int, args: Mapping[str, Any]) -> nn.Module:
    """A new network with random weights: float [B,3,h,w] in [0,1] to [B,3,h·scale,w·scale].

    From its bare `state_dict()`, `spandrel.ModelLoader` (after `sr_models.register()`) makes the
    very same function; arguments for which that is not so are refused. A registered class without
    `detect` is built as it is: spandrel does not know its files.

    Args:
        architecture: one of `architectures()`; the names of ours in any case.
        scale: upscaling factor; goes to the constructor under its own name for it.
        args: further arguments of the constructor. Channels are 3 in and out when left out.

    Raises:
        ValueError: unknown architecture or argument, or spandrel would load another function from
            these weights; the message names the argument and the mend.

    >>> describe(build_network("Compact", 4, {"num_feat": 16, "num_conv": 2}))
    12163
    """
    if architecture.lower() in modules("architecture"):
        build, told = get_architecture(architecture), scale
    else:
        build, told = _class(architecture, scale), _loaded_scale(architecture, scale, args)
    module = build(**_arguments(architecture, told, dict(args)))
    if architecture == "GRL":
        # spandrel reads window, stripe and anchor sizes from these; GRL itself does not store them.
        for name in ("table_w", "table_sh", "index_sh_a2w"):
            module.register_buffer(name, getattr(module, name), persistent=True)
    if architecture == "RCAN":
        module.register_forward_pre_hook(_own_input)
    if architecture.lower() not in modules("architecture") or hasattr(module, "detect"):
        _check_told_again(architecture, module, scale)
    return module


def describe(module: nn.Module) -> int:
    """Number of parameters (buffers are not counted)."""
    return sum(p.numel() for p in module.parameters())


def feature_module_of(network: nn.Module) -> str | None:
    """Path of the module whose output is the last LR-size features [B,C,h,w], where one is known.

    Ours say it themselves (`feature_module`); spandrel's are listed here.
    """
    path = getattr(network, "feature_module", None) or _FEATURES.get(type(network).__name__)
    if path is None:
        return "conv_after_body" if hasattr(network, "conv_after_body") else None
    child, _, index = path.partition(".-")
    return f"{child}.{len(getattr(network, child)) - int(index)}" if index else str(path)


def constructor_arguments(architecture: str) -> dict[str, Any]:
    """Name -> default (`inspect.Parameter.empty` where it is required) of a constructor.

    Of a preset of ours that hands on what it is given, those of the class that it names.

    Raises:
        ValueError: unknown architecture.
    """
    found: Any
    if architecture.lower() in modules("architecture"):
        found = get_architecture(architecture)
        if _takes_any(found):
            found = plugin.class_of(architecture) or found
    else:
        found = _class(architecture, 4)
    parameters = inspect.signature(found).parameters.values()
    return {p.name: p.default for p in parameters if p.kind not in _GATHERING}


def _class(architecture: str, scale: int) -> Any:
    if architecture not in _MODULES:
        raise unknown("architecture", architecture, list(architectures()))
    name = architecture
    if architecture == "RealCUGAN":
        if scale not in _CUGAN:
            raise ValueError(f"RealCUGAN: scale {scale} is not one of {tuple(_CUGAN)}")
        name = _CUGAN[scale]
    return getattr(importlib.import_module(_MODULES[architecture]), name)


def _loaded_scale(architecture: str, scale: int, args: Mapping[str, Any]) -> int:
    """What the constructor calls its scale: ESRGAN counts it from the unshuffled picture."""
    factor = args.get("shuffle_factor") if architecture == "ESRGAN" else None
    return scale * (factor or 1)


def _arguments(architecture: str, scale: int, args: dict[str, Any]) -> dict[str, Any]:
    known = constructor_arguments(architecture)
    for name in args:
        if name not in known and not _hides_arguments(architecture):
            raise ValueError(
                f"{architecture} has no argument {name!r}{_nearest(name, known)}: it takes "
                f"{', '.join(known)}"
            )
    filled: dict[str, Any] = {name: 3 for name in _CHANNEL_NAMES if name in known}
    if known.get("upsampler", None) == "":  # the class's default does not enlarge at all
        filled["upsampler"] = "pixelshuffle"
    if args.get("shuffle_factor"):
        filled["in_nc"] = 3 * args["shuffle_factor"] ** 2
    filled.update(_LOADED_AS.get(architecture, {}))
    filled.update(args)
    scale_name = next((name for name in _SCALE_NAMES if name in known), None)
    if scale_name is not None:
        if args.get(scale_name, scale) != scale:
            raise ValueError(
                f"{architecture}: {scale_name} {args[scale_name]} but scale is {scale}"
            )
        filled[scale_name] = scale
    missing = [n for n, d in known.items() if d is inspect.Parameter.empty and n not in filled]
    if missing:
        raise ValueError(f"{architecture} needs {', '.join(missing)}: give them in `args`")
    return filled


def _takes_any(found: Any) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(found).parameters.values())


def _hides_arguments(architecture: str) -> bool:
    """Whether it is a factory of ours that hands on its arguments to nobody knows what."""
    if architecture.lower() not in modules("architecture"):
        return False
    return plugin.class_of(architecture) is None and _takes_any(get_architecture(architecture))


def _own_input(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """spandrel's RCAN brings its input to 0..255 in place: it gets a copy."""
    return (given[0].clone(), *given[1:])


def _nearest(name: str, names: Iterable[str]) -> str:
    lower = {n.lower(): n for n in names}
    first_word = name.lower().split("_")[0]  # window of window_size
    near = [first_word] if first_word in lower else []
    near = near or difflib.get_close_matches(name.lower(), lower, 1, 0.5)
    return f" (did you mean {lower[near[0]]}?)" if near else ""


def _check_told_again(architecture: str, module: nn.Module, scale: int) -> None:
    """Loads the weights as spandrel would and compares what it took the network for."""
    plugin.register()
    with torch.random.fork_rng(devices=[]):
        try:
            loaded = MAIN_REGISTRY.load(dict(module.state_dict()))
        except UnsupportedModelError:
            raise ValueError(
                f"{architecture}: spandrel does not recognise weights of these `args`"
            ) from None
        except (RuntimeError, ValueError, AssertionError, KeyError, TypeError) as error:
            raise ValueError(
                f"{architecture}: spandrel cannot load weights of these `args` again: "
                f"{one_line(error)}"
            ) from error
    if type(loaded.model) is not type(module):
        raise ValueError(
            f"{architecture}: spandrel takes weights of these `args` for "
            f"{type(loaded.model).__name__}"
        )
    if loaded.scale != scale:
        raise ValueError(f"{architecture}: these `args` enlarge by {loaded.scale}, not by {scale}")
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
