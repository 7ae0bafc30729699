"""What a model must prove before it is released: pure functions on measured numbers.

They read no file and stop nothing; the release stage and Dagster's asset checks act on what they
say. `Scores` holds, for each row of the leaderboard and each benchmark, the mean score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sr_assets.evaluation.results import BICUBIC, Score, Scores, largest_offset
from sr_assets.recipe.models import GateModel, ModelBase, PlainModel, Recipe, StudentModel

#: Largest mean colour offset of a channel that passes, in grey levels.
OFFSET_LIMIT = 0.5
#: Loss of PSNR-Y against the last release that is taken for noise, in dB.
REGRESSION_TOLERANCE = 0.01

#: Name of each check and what it asks for.
DESCRIPTIONS = {
    "beats_bicubic": "PSNR-Y is above bicubic enlargement on every benchmark.",
    "colour_offset": f"No channel is off by {OFFSET_LIMIT} grey levels or more on any benchmark.",
    "no_regression": f"PSNR-Y is at most {REGRESSION_TOLERANCE} dB below the last release.",
    "beats_best_expert": "A fusion's mean PSNR-Y is above that of its best single expert.",
    "teacher_helped": "A student's mean PSNR-Y is above that of the same network without teacher.",
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
        last_release: benchmark -> mean score that the last release recorded; None for the first.

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
    if isinstance(model, GateModel):
        experts = model.experts or tuple(recipe.experts)
        outcomes.append(beats_best_expert(own, {e: results.get(e, {}) for e in experts}))
    if isinstance(model, StudentModel):
        control = None if model.control is None else recipe.models[model.control]
        outcomes.append(
            teacher_helped(
                own,
                results.get(model.control or "", {}),
                unfair_control(recipe, model, control if isinstance(control, PlainModel) else None),
            )
        )
    return outcomes


def scores_of(leaderboard: Mapping[str, Any]) -> dict[str, dict[str, Score]]:
    """The scores inside the content of `leaderboard.json`."""
    return {row["name"]: dict(row["benchmarks"]) for row in leaderboard["rows"]}


def beats_bicubic(model: Mapping[str, Score], bicubic: Mapping[str, Score]) -> CheckOutcome:
    """Above bicubic on every benchmark; arguments are benchmark -> mean score."""
    name = "beats_bicubic"
    shared = [b for b in bicubic if b in model]
    if not shared:
        return CheckOutcome(name, False, _NOT_MEASURED)
    gains = {b: _psnr(model[b]) - _psnr(bicubic[b]) for b in shared}
    worst = min(gains, key=lambda b: gains[b])
    return CheckOutcome(
        name,
        gains[worst] > 0,
        f"{gains[worst]:+.2f} dB against bicubic on {worst}{_least(shared)}",
        {f"gain_{b}": gain for b, gain in gains.items()},
    )


def colour_offset(model: Mapping[str, Score]) -> CheckOutcome:
    """The mean colour offset of every channel is under `OFFSET_LIMIT` on every benchmark."""
    name = "colour_offset"
    if not model:
        return CheckOutcome(name, False, _NOT_MEASURED)
    worst = max(model, key=lambda b: largest_offset(model[b]))
    largest = largest_offset(model[worst])
    return CheckOutcome(
        name,
        largest < OFFSET_LIMIT,
        f"largest offset {largest:.2f} grey levels on {worst}, the limit is {OFFSET_LIMIT}",
        {"largest": largest, "limit": OFFSET_LIMIT},
    )


def no_regression(
    model: Mapping[str, Score], last_release: Mapping[str, Score] | None
) -> CheckOutcome:
    """No benchmark that the last release recorded is lower now, beyond the tolerance."""
    name = "no_regression"
    if not model:
        return CheckOutcome(name, False, _NOT_MEASURED)
    if last_release is None:
        return CheckOutcome(name, True, "first release: nothing to compare with")
    shared = [b for b in last_release if b in model]
    if not shared:
        return CheckOutcome(
            name,
            True,
            f"the last release was measured on {', '.join(last_release) or 'no benchmark'}, "
            "none of which is in the recipe",
        )
    changes = {b: _psnr(model[b]) - _psnr(last_release[b]) for b in shared}
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
    means = {e: _mean_psnr(scores, model) for e, scores in experts.items()}
    best = max(means, key=lambda e: means[e])
    own = _mean_psnr(model, model)
    gain = own - means[best]
    return CheckOutcome(
        name,
        gain > 0,
        f"{gain:+.3f} dB against {best}, the best single expert ({means[best]:.2f} dB)",
        {"psnr_y": own, "best_expert": means[best], "gain": gain},
    )


def teacher_helped(
    student: Mapping[str, Score], control: Mapping[str, Score], unfair: str | None
) -> CheckOutcome:
    """The student's mean PSNR-Y over the benchmarks is above that of its control.

    Args:
        student: benchmark -> mean score.
        control: the same for the same network without a teacher.
        unfair: why the comparison proves nothing (see `unfair_control`), or None.
    """
    name = "teacher_helped"
    if unfair is not None:
        return CheckOutcome(name, False, unfair)
    if not student or any(b not in control for b in student):
        return CheckOutcome(name, False, _NOT_MEASURED)
    own, without = _mean_psnr(student, student), _mean_psnr(control, student)
    return CheckOutcome(
        name,
        own > without,
        f"{own - without:+.3f} dB against the same network without a teacher ({without:.2f} dB)",
        {"psnr_y": own, "control": without, "gain": own - without},
    )


def unfair_control(recipe: Recipe, student: StudentModel, control: PlainModel | None) -> str | None:
    """Why a control proves nothing about the teacher; None when it does.

    The control must have seen at least as many crops (steps x batch x accumulate), at least as
    large, of the same datasets.
    """
    if control is None:
        return "no control: name a plain model with the same network in `control`"
    if _datasets(recipe, control) != _datasets(recipe, student):
        return (
            f"control {student.control} saw other datasets: "
            f"give `models.{student.control}.datasets` the student's"
        )
    seen, wanted = _crops(control), _crops(student)
    if seen < wanted:
        return (
            f"control {student.control} saw {seen:,} crops, the student {wanted:,}: "
            f"raise `models.{student.control}.train.steps`"
        )
    if control.train.crop < student.train.crop:
        return (
            f"control {student.control} saw crops of {control.train.crop} px, the student of "
            f"{student.train.crop}: raise `models.{student.control}.train.crop`"
        )
    return None


_NOT_MEASURED = "not measured: add a benchmark to `benchmarks` and build its evaluations"


def _psnr(score: Score) -> float:
    """PSNR-Y for comparisons: images that equal HR count as 100 dB, which keeps numbers finite."""
    value = score["psnr_y"]
    return 100.0 if value is None else float(value)


def _mean_psnr(scores: Mapping[str, Score], benchmarks: Iterable[str]) -> float:
    values = [_psnr(scores[b]) for b in benchmarks]
    return sum(values) / len(values)


def _least(benchmarks: list[str]) -> str:
    return "" if len(benchmarks) == 1 else f", the least of {len(benchmarks)} benchmarks"


def _datasets(recipe: Recipe, model: ModelBase) -> set[str]:
    return set(recipe.training_datasets(model.datasets))


def _crops(model: ModelBase) -> int:
    train = model.train
    return train.steps * train.batch * train.accumulate
