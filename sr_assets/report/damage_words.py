"""Says in words what was done to a sample: one step, or all of them in order.

Numbers are for reading; the exact ones are in the table of the pair store.
"""

from __future__ import annotations

from collections.abc import Sequence

from sr_assets.evaluation.damage_kinds import AS_IT_CAME, kind_words
from sr_assets.stores.pairs import AppliedStep


def describe(steps: Sequence[AppliedStep]) -> str:
    """All steps in one line, in the order in which they were done.

    A sample without steps, or whose dataset brought its LR, is "as it came".
    """
    return " → ".join(map(step_words, steps)) or AS_IT_CAME


def step_words(step: AppliedStep) -> str:
    """One step with what it drew, such as "Gaussian noise σ 0.05, grey" or "JPEG 82 4:2:0".

    Numbers that a step does not have are left out; an unknown step is its operation, kind and
    numbers as they are.
    """
    n = step.numbers
    if step.op == "paired":
        return AS_IT_CAME
    if step.op == "blur":
        return _joined(f"{step.kind} blur", *_shape(step), _px(step))
    if step.op == "resize":
        return _joined(
            step.kind,
            f"{n['width']:.0f}×{n['height']:.0f}" if {"width", "height"} <= set(n) else "",
        )
    if step.op == "noise":
        strength = (
            _number(step, "σ {:.3f}", "sigma")
            if step.kind == "gaussian"
            else _number(step, "{:.0f} photons", "photons")
        )
        colour = "" if "grey" not in n else ", grey" if n["grey"] else ", colour"
        return _joined(f"{kind_words(step.op, step.kind)} noise", strength) + colour
    if step.op == "jpeg":
        return _joined("JPEG", _number(step, "{:.0f}", "quality"), step.kind)
    if step.op == "webp":
        return _joined("WebP", _number(step, "{:.0f}", "quality"))
    if step.op == "sinc":
        return _joined("sinc", _number(step, "{:.2f} π", "cutoff"), _px(step))
    return _joined(step.op, step.kind, *(f"{name} {value:g}" for name, value in n.items()))


def _shape(step: AppliedStep) -> tuple[str, ...]:
    if step.kind == "anisotropic" and {"sigma_x", "sigma_y"} <= set(step.numbers):
        x, y = step.numbers["sigma_x"], step.numbers["sigma_y"]
        return f"σ {x:.1f}×{y:.1f}", _number(step, "at {:.0f}°", "degrees")
    return (
        _number(step, "σ {:.1f}", "sigma"),
        _number(step, "β {:.1f}", "beta"),
        _number(step, "flat {:.0%}", "ratio"),
    )


def _px(step: AppliedStep) -> str:
    return _number(step, "{:.0f} px", "size")


def _number(step: AppliedStep, form: str, name: str) -> str:
    """The number `name` in words, or nothing where the step has none."""
    return form.format(step.numbers[name]) if name in step.numbers else ""


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)
