"""What a row of the leaderboard costs to run: the record of it, how it is measured, and its sum.

Who runs what is `expert_cost.py` and `model_cost.py`. Multiply-adds and parameters are content;
seconds are a measurement of the day, kept beside it, and change no data version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sr_assets.lineage.stage import StageContext
from sr_assets.storage import Output

if TYPE_CHECKING:
    import torch

    from sr_models.metrics.cost import Forward, Speed

COST, SECONDS = "cost.json", "seconds.json"
#: LR side on an accelerator (px), which a smaller picture would leave idle.
_LARGE_SIDE = 256


@dataclass(frozen=True)
class Cost:
    """What a network, or several that run one after another, cost."""

    parameters: int
    multiply_adds: int
    """For one megapixel of output."""
    seconds: float | None
    """For one megapixel of output; None where parts of it ran on different devices."""
    devices: tuple[str, ...]
    """Where it ran, threads included; several where its parts were measured apart."""


def write_cost(
    context: StageContext, forward: Forward, parameters: int, scale: int, device: torch.device
) -> dict[str, Any]:
    """Measures `forward`, writes `cost.json` and, beside the content, `seconds.json`.

    Returns:
        Metadata: the numbers, and where they were taken.

    Raises:
        ValueError: `forward` does not enlarge `scale` times.
    """
    from sr_models.metrics.cost import multiply_adds

    count = multiply_adds(forward, scale, device=device)
    speed = _speed(forward, scale, device)
    context.output.write_json(COST, {"parameters": parameters, "multiply_adds": count})
    context.output.write_json(SECONDS, asdict(speed), content=False)
    return {
        "parameters": parameters,
        "multiply_adds_per_megapixel": count,
        "seconds_per_megapixel": speed.seconds,
        "device": _where(speed.device, speed.threads),
        "lr_side": speed.side,
    }


def read_cost(output: Output) -> Cost:
    """What `write_cost` wrote."""
    counted, measured = output.read_json(COST), output.read_json(SECONDS)
    return Cost(
        counted["parameters"],
        counted["multiply_adds"],
        measured["seconds"],
        (_where(measured["device"], measured["threads"]),),
    )


def total_cost(parts: Iterable[Cost]) -> Cost | None:
    """The cost of networks that run one after another; None of none."""
    listed = list(parts)
    if not listed:
        return None
    devices = tuple(dict.fromkeys(device for part in listed for device in part.devices))
    seconds = [part.seconds for part in listed if part.seconds is not None]
    whole = len(devices) == 1 and len(seconds) == len(listed)
    return Cost(
        sum(part.parameters for part in listed),
        sum(part.multiply_adds for part in listed),
        sum(seconds) if whole else None,
        devices,
    )


def repeated_cost(cost: Cost, times: int) -> Cost:
    """The cost of a network that runs so many times for one picture."""
    seconds = None if cost.seconds is None else cost.seconds * times
    return Cost(cost.parameters, cost.multiply_adds * times, seconds, cost.devices)


def devices_of(speeds: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the seconds of a leaderboard's `seconds.json` were taken; empty for none."""
    listed = (device for speed in speeds.values() for device in speed["devices"])
    return "; ".join(dict.fromkeys(listed))


def _speed(forward: Forward, scale: int, device: torch.device) -> Speed:
    from sr_models.metrics.cost import seconds_per_megapixel

    if device.type != "cpu":
        with suppress(RuntimeError):  # out of memory; any other error comes again below
            return seconds_per_megapixel(forward, scale, device=device, side=_LARGE_SIDE)
    return seconds_per_megapixel(forward, scale, device=device)


def _where(device: str, threads: int | None) -> str:
    return device if threads is None else f"{device}, {threads} thread{'s' * (threads > 1)}"
