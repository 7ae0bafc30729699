"""Phase 1 of a fusion: the experts' pictures by name, checked, and their plain mean.

Running the experts is `sr_models/experts/running.py`; what is learnt from them, the other phases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def check_names(experts: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple; ValueError unless there is at least one and each is there once."""
    if not experts or len(set(experts)) != len(experts):
        raise ValueError(f"experts {list(experts)}: give at least one name, each once")
    return tuple(experts)


def check_pictures(
    lr: Tensor, sr: Mapping[str, Tensor], experts: Sequence[str], scale: int
) -> None:
    """ValueError unless `sr` has the picture [B, 3, scale h, scale w] of every expert, no more."""
    _check_keys(sr, experts)
    if lr.ndim != 4 or lr.shape[1] != 3:
        raise ValueError(f"lr is {tuple(lr.shape)}, [B, 3, h, w] is wanted")
    size = (*lr.shape[:2], lr.shape[2] * scale, lr.shape[3] * scale)
    for name, picture in sr.items():
        if tuple(picture.shape) != size:
            raise ValueError(f"SR of {name!r} is {tuple(picture.shape)}, {size} is wanted")


def check_features(lr: Tensor, features: Mapping[str, Tensor], channels: Mapping[str, int]) -> None:
    """ValueError unless `features` has a map [B, channels[name], h, w] for every name."""
    for name, wanted in channels.items():
        if name not in features:
            raise ValueError(
                f"features of experts: {name!r} is missing, there are {sorted(features)}"
            )
        size = (lr.shape[0], wanted, *lr.shape[2:])
        if tuple(features[name].shape) != size:
            raise ValueError(
                f"features of {name!r} are {tuple(features[name].shape)}, {size} is wanted"
            )


def expert_mean(sr: Mapping[str, Tensor], experts: Sequence[str]) -> Tensor:
    """The plain mean: the pictures added in the order of `experts`, then divided by their number.

    Args:
        sr: expert name -> [..., H, W], all of one shape.
        experts: every name of `sr`, in the order of the sum.

    Raises:
        ValueError: `sr` lacks an expert, or has one more.
    """
    _check_keys(sr, experts)
    total = sr[experts[0]]
    for name in experts[1:]:
        total = total + sr[name]
    return total / len(experts)


def _check_keys(sr: Mapping[str, Tensor], experts: Sequence[str]) -> None:
    missing = [name for name in experts if name not in sr]
    unknown = sorted(set(sr) - set(experts))
    if missing or unknown:
        raise ValueError(f"SR of experts: missing {missing}, unknown {unknown}")
