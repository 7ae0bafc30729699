"""The kinds of damage that a degradation process can do, and which of them a sample has.

What they do to quality is `damage_means.py`; measuring is `damage.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

from sr_assets.stores.pairs import AppliedStep
from sr_models.degradations.steps import Blur, Jpeg, Leaf, Noise, Process, Resize, Sinc, Webp

#: Label of the samples to which a step did not happen.
NONE = "none"
#: What is said of LR that a dataset brought.
AS_IT_CAME = "as it came"

_Test = Callable[[AppliedStep | None], bool]
_Number = Callable[[AppliedStep], float]


@dataclass(frozen=True)
class Kind:
    """One way in which a step can go, or a third of the range of what it draws."""

    group: str
    """The step, such as "blur 2"."""
    label: str
    part: bool
    """Whether it splits kinds that are listed too."""
    position: int | None
    """Of the step in the process; None for LR that a dataset brought."""
    holds: _Test
    """Whether the step went this way; it is given None where the step did not happen."""


def kinds_of(process: Process) -> tuple[Kind, ...]:
    """Every kind of damage of a process, in the order in which its steps are written.

    Each step has `NONE`, its kernels, methods, noises or subsamplings, and thirds of the range of
    the number that tells most: σ of a blur (of an anisotropic one √(σx σy)) or of Gaussian noise,
    photons, quality, cut-off. A range of fewer than three values is not split. The last kind is of
    samples whose dataset brought LR.
    """
    leaves = list(process.leaves())
    found = []
    for position, leaf in enumerate(leaves):
        same = [i for i, other in enumerate(leaves) if other.kind == leaf.kind]
        group = op_words(leaf.kind)
        if len(same) > 1:
            group = f"{group} {same.index(position) + 1}"
        for label, part, holds in _ways(leaf):
            found.append(Kind(group, label, part, position, holds))
    return (*found, Kind(AS_IT_CAME, "brought by the dataset", False, None, lambda step: False))


def kinds_in(kinds: Sequence[Kind], steps: Sequence[AppliedStep]) -> tuple[int, ...]:
    """Numbers of those `kinds` that a sample has to which `steps` were done."""
    if not steps or any(step.op == "paired" for step in steps):
        return (len(kinds) - 1,)
    done = {step.position: step for step in steps}
    return tuple(
        number
        for number, kind in enumerate(kinds)
        if kind.position is not None and kind.holds(done.get(kind.position))
    )


def op_words(op: str) -> str:
    """What a step is called, whatever it drew."""
    return {"jpeg": "JPEG", "webp": "WebP"}.get(op, op)


def kind_words(op: str, kind: str) -> str:
    """What a kind of a step is called in a table or a sentence."""
    return {("noise", "gaussian"): "Gaussian", ("noise", "poisson"): "Poisson"}.get(
        (op, kind), kind
    )


def _ways(leaf: Leaf) -> Iterator[tuple[str, bool, _Test]]:
    """(label, part, test) of all kinds of one step."""
    yield NONE, False, lambda step: step is None
    if isinstance(leaf, Blur):
        yield from _each(leaf, leaf.kernels)
        ranges = [getattr(leaf, f"{kernel}_sigma") for kernel in leaf.kernels]
        widest = min(low for low, _ in ranges), max(high for _, high in ranges)
        yield from _thirds("σ ", widest, " px", _sigma)
    elif isinstance(leaf, Resize):
        yield from _each(leaf, leaf.methods)
    elif isinstance(leaf, Noise):
        if "gaussian" in leaf.kinds:
            yield from _each(leaf, ["gaussian"])
            yield from _thirds("Gaussian, σ ", leaf.sigma, "", _drawn("sigma"), "gaussian")
        if "poisson" in leaf.kinds:
            yield from _each(leaf, ["poisson"])
            photons = leaf.photons
            yield from _thirds("Poisson, ", photons, " photons", _drawn("photons"), "poisson")
    elif isinstance(leaf, Sinc):
        yield from _each(leaf, ["sinc"])
        yield from _thirds("cut-off ", leaf.cutoff, " π", _drawn("cutoff"))
    else:
        yield from _each(leaf, leaf.subsampling if isinstance(leaf, Jpeg) else ["lossy"])
        yield from _whole_thirds(leaf)


def _each(leaf: Leaf, kinds: Iterable[str]) -> Iterator[tuple[str, bool, _Test]]:
    for kind in dict.fromkeys(kinds):
        yield kind_words(leaf.kind, kind), False, _went(kind)


def _went(kind: str) -> _Test:
    return lambda step: step is not None and step.kind == kind


def _thirds(
    before: str,
    limits: tuple[float, float],
    after: str,
    number: _Number,
    kind: str | None = None,
) -> Iterator[tuple[str, bool, _Test]]:
    """Thirds of a range of real numbers, of the samples of `kind` alone if it is given."""
    low, high = limits
    if low == high:
        return
    ends = [low, low + (high - low) / 3, high - (high - low) / 3, high]

    def third(step: AppliedStep) -> int:
        return min(2, int(3 * (number(step) - low) / (high - low)))

    for place in range(3):
        label = f"{before}{_short(ends[place])}–{_short(ends[place + 1])}{after}"
        yield label, True, _in_third(third, place, kind)


def _whole_thirds(leaf: Jpeg | Webp) -> Iterator[tuple[str, bool, _Test]]:
    """Thirds of a range of qualities."""
    low, high = leaf.quality
    count = high - low + 1
    if count < 3:
        return

    def third(step: AppliedStep) -> int:
        return int(3 * (step.numbers["quality"] - low) // count)

    for place in range(3):
        first, beyond = low + -(-place * count // 3), low + -(-(place + 1) * count // 3)
        yield f"quality {first}–{beyond - 1}", True, _in_third(third, place, None)


def _in_third(third: Callable[[AppliedStep], int], place: int, kind: str | None) -> _Test:
    def holds(step: AppliedStep | None) -> bool:
        return step is not None and kind in (None, step.kind) and third(step) == place

    return holds


def _drawn(name: str) -> _Number:
    return lambda step: step.numbers[name]


def _sigma(step: AppliedStep) -> float:
    n = step.numbers
    return sqrt(n["sigma_x"] * n["sigma_y"]) if step.kind == "anisotropic" else n["sigma"]


def _short(value: float) -> str:
    """Three figures without a power of ten."""
    return f"{float(f'{value:.3g}'):g}"
