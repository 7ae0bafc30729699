"""Which convolutions to keep in float: ranked by what each costs, the fewest that meet a limit.

How a graph is written and measured comes as a function; only patches for calibration are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from sr_models.export.int8.graph import Convolution

Measure = Callable[[Collection[str]], float]
"""Names of convolutions kept in float -> what int8 then costs."""

_FLOAT_SHARE = 0.5  # of the convolutions, at most; beyond it int8 is hardly faster


def candidates(
    layers: Sequence[Convolution], error: Measure, drop: Measure, limit: float
) -> Iterator[tuple[str, ...]]:
    """Sets of layers to keep in float, ever larger; the caller takes the first that suits it.

    The first is the smallest head of the ranking whose `drop` is at most `limit`, without those in
    it that are not needed, dearest first; then one more of the ranking each time, up to half.

    Args:
        layers: convolutions that can be quantised.
        error: mean squared difference to fp32, by which they are ranked.
        drop: PSNR-Y lost (dB).
        limit: of `drop`.
    """
    if drop(()) <= limit:
        yield ()
    ranking = ranked(layers, error)
    most = int(len(layers) * _FLOAT_SHARE)
    kept: tuple[str, ...] = ()
    for count in range(1, most + 1):
        kept = ranking[:count]
        if drop(kept) <= limit:
            break
    costs = {layer.name: layer.cost for layer in layers}
    for name in sorted(kept[:-1], key=lambda name: -costs[name]):
        fewer = tuple(n for n in kept if n != name)
        if drop(fewer) <= limit:
            kept = fewer
    yield kept
    for name in ranking:
        if name not in kept and len(kept) < most:
            kept = (*kept, name)
            yield kept


def ranked(layers: Sequence[Convolution], error: Measure) -> tuple[str, ...]:
    """Names of `layers`, first the one that costs most when it alone is quantised.

    What one alone in float gains would hide behind the largest of the others.
    """
    names = {layer.name for layer in layers}
    alone = {name: error(names - {name}) for name in names}
    return tuple(sorted(alone, key=lambda name: (-alone[name], name)))
