"""What a model must prove before it is released: pure functions on measured numbers.

They read no file and stop nothing; the release stage and Dagster's asset checks act on what they
say. `Scores` holds, for each row of the leaderboard and each benchmark, the mean score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sr_assets.evaluation.results import (
    BICUBIC,
    Score,
    Scores,
    compare_psnr,
    largest_absolute_offset,
)
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.networks import StudentModel

#: Largest mean colour offset of a channel that passes, in grey levels.
OFFSET_LIMIT = 0.5
#: Loss of PSNR-Y against the last release that is taken for noise, in dB.
REGRESSION_TOLERANCE = 0.01
#: Gain of mean PSNR-Y up to which a teacher made no difference, in dB: two decimals show none.
TEACHER_TOLERANCE = 0.005

NO_REGRESSION = "no_regression"
#: Name of each check and what it asks for.
DESCRIPTIONS = {
    "beats_bicubic": "PSNR-Y is above bicubic enlargement on every benchmark.",
    "colour_offset": f"Pictures are off by less than {OFFSET_LIMIT} grey levels in every channel.",
    NO_REGRESSION: f"PSNR-Y is at most {REGRESSION_TOLERANCE} dB below the last release of the "
    "same scale, on the same images.",
    "beats_best_expert": "A fusion's mean PSNR-Y is above that of its best single expert.",
    "teacher_helped": f"A student's mean PSNR-Y is more than {TEACHER_TOLERANCE} dB above that of "
    "the same network without teacher.",
}


@dataclass(frozen=True)
class CheckOutcome:
    """Whether one check passed, and why in one line."""

    name: str
    passed: bool
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """{"name", "passed", "reason", "numbers"}."""
        return {
            "name": self.name,
            "passed": self.passed,
            "reason": self.reason,
            "numbers": self.numbers,
        }


def release_checks(
    recipe: Recipe,
    name: str,
    results: Scores,
    last_release: Mapping[str, Score] | None,
) -> list[CheckOutcome]:
    """Every check that model `name` has to pass.

    Args:
        recipe: says what kind of model it is and who its controls are.
        name: a model of the recipe.
        results: row name -> benchmark -> mean score; `scores_of(leaderboard.json)` is one.
        last_release: benchmark of this recipe -> mean score that the last release recorded on the
            same images; None for the first.

    Raises:
        KeyError: the recipe has no such model.
    """
    outcomes = [
        *quality_checks(recipe, name, results),
        no_regression(results.get(name, {}), last_release),
    ]
    return outcomes


def quality_checks(recipe: Recipe, name: str, results: Scores) -> list[CheckOutcome]:
    """The checks that need no earlier release; arguments as in `release_checks`."""
    model = recipe.models[name]
    own = results.get(name, {})
    outcomes = [beats_bicubic(own, results.get(BICUBIC, {})), colour_offset(own)]
    if experts := recipe.experts_of(name):
        outcomes.append(beats_best_expert(own, {e: results.get(e, {}) for e in experts}))
    if isinstance(model, StudentModel):
        control = recipe.control_of(name)
        outcomes.append(teacher_helped(own, None if control is None else results.get(control, {})))
    return outcomes


def teachers_worth(checks: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Student -> what `teacher_helped` said, where student and control were both measured.

    Args:
        checks: of `leaderboard.json`.
    """
    return {
        check["name"]: outcome
        for check in checks
        for outcome in check["outcomes"]
        if outcome["name"] == "teacher_helped" and "gain" in outcome["numbers"]
    }


def scores_of(leaderboard: Mapping[str, Any]) -> dict[str, dict[str, Score]]:
    """The scores inside the content of `leaderboard.json`."""
    return {row["name"]: dict(row["benchmarks"]) for row in leaderboard["rows"]}


def beats_bicubic(model: Mapping[str, Score], bicubic: Mapping[str, Score]) -> CheckOutcome:
    """Above bicubic on every benchmark; arguments are benchmark -> mean score."""
    name = "beats_bicubic"
    shared = [b for b in bicubic if b in model]
    if not shared:
        return CheckOutcome(name, False, _NOT_MEASURED)
    gains = {b: _gain(model[b], bicubic[b]) for b in shared}
    worst = min(gains, key=lambda b: gains[b])
    return CheckOutcome(
        name,
        gains[worst] > 0,
        f"{gains[worst]:+.2f} dB against bicubic on {worst}{_least(shared)}",
        {f"gain_{b}": gain for b, gain in gains.items()},
    )


def colour_offset(model: Mapping[str, Score]) -> CheckOutcome:
    """The mean |colour offset| of every channel is under `OFFSET_LIMIT` on every benchmark.

    Absolute, so that one picture made brighter does not hide another made darker.
    """
    name = "colour_offset"
    if not model:
        return CheckOutcome(name, False, _NOT_MEASURED)
    worst = max(model, key=lambda b: largest_absolute_offset(model[b]))
    largest = largest_absolute_offset(model[worst])
    return CheckOutcome(
        name,
        largest < OFFSET_LIMIT,
        f"largest mean |offset| {largest:.2f} grey levels on {worst}, the limit is {OFFSET_LIMIT}",
        {"largest": largest, "limit": OFFSET_LIMIT},
    )


def no_regression(
    model: Mapping[str, Score], last_release: Mapping[str, Score] | None
) -> CheckOutcome:
    """No benchmark that the last release recorded is lower now, beyond the tolerance."""
    name = NO_REGRESSION
    if not model:
        return CheckOutcome(name, False, _NOT_MEASURED)
    if last_release is None:
        return CheckOutcome(name, True, "first release: nothing to compare with")
    shared = [b for b in last_release if b in model]
    if not shared:
        # No failure: a recipe may replace its benchmarks, and nothing can be said then.
        return CheckOutcome(
            name, True, "the last release was measured on other images: nothing to compare with"
        )
    changes = {b: _gain(model[b], last_release[b]) for b in shared}
    worst = min(changes, key=lambda b: changes[b])
    return CheckOutcome(
        name,
        changes[worst] >= -REGRESSION_TOLERANCE,
        f"{changes[worst]:+.3f} dB against the last release on {worst}{_least(shared)}",
        {f"change_{b}": change for b, change in changes.items()},
    )


def beats_best_expert(
    model: Mapping[str, Score], experts: Mapping[str, Mapping[str, Score]]
) -> CheckOutcome:
    """The mean PSNR-Y over the benchmarks is above that of the best single expert."""
    name = "beats_best_expert"
    if (
        not model
        or not experts
        or any(b not in scores for scores in experts.values() for b in model)
    ):
        return CheckOutcome(name, False, _NOT_MEASURED)
    means = {e: _means(model, scores) for e, scores in experts.items()}
    best = min(means, key=lambda e: means[e][0] - means[e][1])
    own, other = means[best]
    return CheckOutcome(
        name,
        own > other,
        f"{own - other:+.3f} dB against {best}, the best single expert ({other:.2f} dB)",
        {"psnr_y": own, "best_expert": other, "gain": own - other},
    )


def teacher_helped(
    student: Mapping[str, Score], control: Mapping[str, Score] | None
) -> CheckOutcome:
    """The student's mean PSNR-Y is above its control's by more than `TEACHER_TOLERANCE`.

    Args:
        student: benchmark -> mean score.
        control: the same for the same network without a teacher; None where none is trained.
    """
    name = "teacher_helped"
    if control is None:
        return CheckOutcome(name, False, "no control: set its `control` to true")
    if not student or any(b not in control for b in student):
        return CheckOutcome(name, False, _NOT_MEASURED)
    own, without = _means(student, control)
    return CheckOutcome(
        name,
        own - without > TEACHER_TOLERANCE,
        f"{own - without:+.3f} dB against the same network without a teacher ({without:.2f} dB); "
        f"more than {TEACHER_TOLERANCE} dB counts as help",
        {"psnr_y": own, "control": without, "gain": own - without},
    )


_NOT_MEASURED = "not measured: add a benchmark to `benchmarks` and build its evaluations"


def _gain(score: Score, other: Score) -> float:
    """PSNR-Y over another row of the same benchmark (dB), over the same images."""
    own, without = compare_psnr(score, other)
    return own - without


def _means(model: Mapping[str, Score], other: Mapping[str, Score]) -> tuple[float, float]:
    """Mean PSNR-Y (dB) of two rows over the benchmarks of the first."""
    pairs = [compare_psnr(model[b], other[b]) for b in model]
    return sum(a for a, _ in pairs) / len(pairs), sum(b for _, b in pairs) / len(pairs)


def _least(benchmarks: list[str]) -> str:
    return "" if len(benchmarks) == 1 else f", the least of {len(benchmarks)} benchmarks"
