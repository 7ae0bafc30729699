"""Constructor arguments of the four published x4 experts, as their released weights have them.

Loading released weights does not need these: `loading.py` reads everything from the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """An architecture, its arguments for `build_network`, and what comes out of them."""

    architecture: str
    args: dict[str, Any]
    parameters: int
    """Number of parameters at x4."""
    state_keys: int
    """Tensors in the released file."""


_HAT_L_DEPTHS = [6] * 12
_GRL_B_DEPTHS = [4, 4, 8, 8, 8, 4, 4]

EXPERTS_X4 = {
    "hat_l": Preset(
        "HAT",
        {
            "img_size": 64,
            "window_size": 16,
            "compress_ratio": 3,
            "squeeze_factor": 30,
            "conv_scale": 0.01,
            "overlap_ratio": 0.5,
            "img_range": 1.0,
            "depths": _HAT_L_DEPTHS,
            "embed_dim": 180,
            "num_heads": [6] * len(_HAT_L_DEPTHS),
            "mlp_ratio": 2.0,
            "upsampler": "pixelshuffle",
            "resi_connection": "1conv",
        },
        parameters=40_846_575,
        state_keys=1710,
    ),
    "drct_l": Preset(
        "DRCT",
        {
            "img_size": 64,  # also the shape of its persistent masks
            "window_size": 16,
            "img_range": 1.0,
            "depths": [6] * 12,
            "embed_dim": 180,
            "num_heads": [6] * 12,
            "mlp_ratio": 2.0,
            "gc": 32,
            "upsampler": "pixelshuffle",
            "resi_connection": "1conv",
        },
        parameters=27_580_719,
        state_keys=1000,
    ),
    "grl_b": Preset(
        "GRL",
        {
            "img_size": 64,
            "embed_dim": 180,
            "depths": _GRL_B_DEPTHS,
            "num_heads_window": [3] * len(_GRL_B_DEPTHS),
            "num_heads_stripe": [3] * len(_GRL_B_DEPTHS),
            "window_size": 32,
            "stripe_size": [64, 64],
            "stripe_groups": [None, None],
            "stripe_shift": True,
            "mlp_ratio": 2.0,
            "qkv_proj_type": "linear",
            "anchor_proj_type": "avgpool",
            "anchor_one_stage": True,
            "anchor_window_down_factor": 4,
            "local_connection": True,
            "conv_type": "1conv",
            "upsampler": "pixelshuffle",
        },
        parameters=20_201_299,
        state_keys=1390,
    ),
    "edsr_l": Preset(
        "EDSR",
        {"num_feat": 256, "num_block": 32, "res_scale": 0.1, "img_range": 255.0},
        parameters=43_089_923,
        state_keys=138,
    ),
}
