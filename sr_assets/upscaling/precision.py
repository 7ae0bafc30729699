"""In how many bits a model computes: what is asked for, where its architecture bears it.

How the backends compute is `sr_models/inference/backends`.
"""

from __future__ import annotations

from pathlib import Path

from upath import UPath

from sr_assets.lineage.stage import StageError
from sr_assets.model_lookup import Upscaler, load_upscaler
from sr_assets.upscaling.enlarging import Enlarger

DTYPES = ("auto", "fp32", "bf16", "fp16")


def load_enlarger(
    model: str,
    root: str | Path | UPath,
    device: str = "auto",
    backend: str = "auto",
    dtype: str = "auto",
    self_ensemble: bool = False,
) -> Enlarger:
    """A model ready to run in the precision that is asked for.

    Args:
        model: see `load_upscaler`; `root`, `device` and `backend` too.
        root: folder of a recipe's outputs.
        device: where it runs.
        backend: what runs it.
        dtype: `auto` is the backend's own; `fp32` the fastest exact one; `bf16` the backend of that
            name, for architectures that bear it; `fp16` half precision on a GPU, likewise.
        self_ensemble: the mean of the eight flips and transposes.

    Raises:
        StageError: there is no such model, or it does not run that way here.
    """
    if dtype not in DTYPES:
        raise StageError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}")
    if dtype != "auto" and backend != "auto":
        raise StageError(f"--backend {backend} has a precision of its own: leave --dtype out")
    if dtype == "bf16":
        return Enlarger(load_upscaler(model, root, device, "bf16"), self_ensemble)
    if dtype == "fp16":
        upscaler = load_upscaler(model, root, device, "torch")
        _demand_fp16(upscaler)
        return Enlarger(upscaler, self_ensemble, fp16=True)
    chosen = "exact" if dtype == "fp32" else backend
    return Enlarger(load_upscaler(model, root, device, chosen), self_ensemble)


def _demand_fp16(upscaler: Upscaler) -> None:
    if upscaler.device.type == "cpu":
        raise StageError("--dtype fp16 is slower than fp32 on a CPU: use bf16 or fp32")
    if upscaler.network is None or not _bears_fp16(upscaler):
        raise StageError(f"{upscaler.name} is not known to work in fp16: use bf16 or fp32")


def _bears_fp16(upscaler: Upscaler) -> bool:
    """spandrel's word on the architecture."""
    from spandrel import MAIN_REGISTRY

    from sr_models.plugin import register

    assert upscaler.network is not None
    register()
    return MAIN_REGISTRY.load(dict(upscaler.network.state_dict())).supports_half
