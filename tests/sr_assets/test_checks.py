"""The checks: when each passes, when it fails, and that the reason says so."""

from __future__ import annotations

from typing import Any

import pytest

from sr_assets.assets.checks import (
    DESCRIPTIONS,
    beats_best_expert,
    beats_bicubic,
    colour_offset,
    no_regression,
    quality_checks,
    release_checks,
    scores_of,
    teacher_helped,
)
from sr_assets.evaluation.results import ImageScore, Results, side_by_side
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.networks import PlainModel, StudentModel

NETWORK = {"architecture": "Compact", "args": {"num_feat": 8}}


def score(
    psnr: float | None, offset: tuple[float, float, float] = (0.0, 0.1, -0.2)
) -> dict[str, Any]:
    absolute = [abs(c) for c in offset]
    return {
        "psnr_y": psnr,
        "ssim_y": 0.8,
        "colour_offset": list(offset),
        "colour_offset_abs": absolute,
    }


def measured(*psnr: float | None, offsets: tuple[float, ...] = ()) -> Results:
    """A row with one image for each PSNR-Y."""
    images = tuple(
        ImageScore(f"{i}.png", 64, 64, value, 0.8, (offset, 0.0, 0.0), f"sr/{i}.png")
        for i, (value, offset) in enumerate(zip(psnr, offsets or [0.0] * len(psnr), strict=True))
    )
    return Results("row", "plain", images, None)


def recipe() -> Recipe:
    folder = {"source": {"kind": "folder", "path": "photos"}}
    weights = {"source": {"kind": "file", "path": "w.pth"}}
    train = {"steps": 100, "batch": 4, "accumulate": 2, "crop": 16}
    student = {"kind": "student", "network": NETWORK, "teachers": "blend", "train": train}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "datasets": {"a": folder, "b": folder},
            "benchmarks": {"x": folder, "y": folder},
            "experts": {"one": weights, "two": weights},
            "models": {
                "alone": {"kind": "plain", "network": NETWORK, "train": train},
                "blend": {"kind": "gate", "train": train},
                "fast": {**student, "control": True},
                "lonely": student,
            },
        }
    )


RESULTS = {
    "bicubic": {"x": score(25.0), "y": score(24.0)},
    "one": {"x": score(27.0), "y": score(26.0)},
    "two": {"x": score(26.0), "y": score(26.5)},
    "alone": {"x": score(26.0), "y": score(25.0)},
    "fast_control": {"x": score(26.0), "y": score(25.0)},
    "blend": {"x": score(27.2), "y": score(26.1)},
    "fast": {"x": score(26.1), "y": score(25.1)},
    "lonely": {"x": score(26.1), "y": score(25.1)},
    "elsewhere": {"x": score(26.1), "y": score(25.1)},
}


def test_bicubic_must_be_beaten_on_every_benchmark() -> None:
    bicubic = RESULTS["bicubic"]
    assert beats_bicubic(RESULTS["one"], bicubic).passed
    lower = beats_bicubic({"x": score(30.0), "y": score(23.9)}, bicubic)
    assert not lower.passed
    assert "-0.10 dB" in lower.reason and "on y" in lower.reason
    assert lower.numbers == {"gain_x": 5.0, "gain_y": pytest.approx(-0.1)}
    assert not beats_bicubic({"x": score(25.0)}, {"x": score(25.0)}).passed


def test_a_model_that_is_identical_to_hr_beats_bicubic() -> None:
    outcome = beats_bicubic({"x": score(None)}, {"x": score(25.0)})
    assert outcome.passed
    assert all(abs(value) < 1000 for value in outcome.numbers.values())


def test_colour_offset_looks_at_every_channel_and_benchmark() -> None:
    assert colour_offset({"x": score(1.0, (0.49, 0.0, -0.49))}).passed
    outcome = colour_offset({"x": score(1.0), "y": score(1.0, (0.0, -0.5, 0.0))})
    assert not outcome.passed
    assert "0.50" in outcome.reason and "on y" in outcome.reason


def test_regression_has_a_tolerance() -> None:
    now = {"x": score(27.0), "y": score(26.0)}
    assert no_regression(now, None).passed
    assert no_regression(now, {"x": score(27.009)}).passed
    worse = no_regression(now, {"x": score(26.0), "y": score(26.02)})
    assert not worse.passed
    assert "-0.020 dB" in worse.reason
    elsewhere = no_regression(now, {})
    assert elsewhere.passed and "other images" in elsewhere.reason


def test_further_metrics_are_means_over_the_same_images_for_all_rows() -> None:
    def row(*values: float | None) -> Results:
        images = tuple(
            ImageScore(
                f"{i}", 64, 64, 30.0, 0.8, (0.0,) * 3, "", {"psnr_rgb": value, "ms_ssim": 0.5}
            )
            for i, value in enumerate(values)
        )
        return Results("row", "plain", images, None)

    rows = side_by_side({"exact": row(None, 30.0), "worse": row(60.0, 29.0)})
    assert rows["exact"]["metrics"]["psnr_rgb"] == 30.0
    assert rows["worse"]["metrics"]["psnr_rgb"] == 29.0
    assert rows["worse"]["metrics"]["ms_ssim"] == 0.5
    alone = side_by_side({"a": row(None), "b": row(40.0)})
    assert alone["a"]["metrics"]["psnr_rgb"] is None and alone["b"]["metrics"]["psnr_rgb"] == 40.0


def test_an_image_that_one_row_meets_exactly_tilts_no_comparison() -> None:
    rows = side_by_side({"model": measured(27.5, 27.4, 50.0), "bicubic": measured(28, 28, None)})
    lower = beats_bicubic({"x": rows["model"]}, {"x": rows["bicubic"]})
    assert not lower.passed and "-0.55 dB" in lower.reason
    assert rows["model"]["psnr_y"] == pytest.approx(27.45)  # as bicubic, over two images

    def alone(*psnr: float | None) -> dict[str, Any]:
        return {"x": side_by_side({"row": measured(*psnr)})["row"]}

    now, before = alone(28.2, 28.2, None), alone(28.0, 28.0, 50.0)
    assert no_regression(now, before).passed
    assert teacher_helped(now, before).passed
    assert beats_best_expert(now, {"one": before, "two": alone(27.0, None, 60.0)}).passed


def test_offsets_of_two_images_do_not_cancel() -> None:
    mean = measured(28.0, 28.0, offsets=(4.0, -4.0)).mean
    assert mean["colour_offset"] == [0, 0, 0]
    outcome = colour_offset({"x": mean})
    assert not outcome.passed and "4.00" in outcome.reason


def test_fusion_is_held_to_its_best_expert_over_all_benchmarks() -> None:
    experts = {name: RESULTS[name] for name in ("one", "two")}
    assert beats_best_expert(RESULTS["blend"], experts).passed
    outcome = beats_best_expert({"x": score(27.0), "y": score(25.9)}, experts)
    assert not outcome.passed
    assert "one" in outcome.reason
    assert outcome.numbers["best_expert"] == 26.5


def test_student_is_held_to_its_control() -> None:
    assert teacher_helped(RESULTS["fast"], RESULTS["alone"]).passed
    outcome = teacher_helped(RESULTS["alone"], RESULTS["alone"])
    assert not outcome.passed


@pytest.mark.parametrize(("gain", "helped"), [(-0.1, False), (0.004, False), (0.006, True)])
def test_a_gain_that_two_decimals_do_not_show_is_no_help(gain: float, helped: bool) -> None:
    outcome = teacher_helped({"x": score(28.0 + gain)}, {"x": score(28.0)})
    assert outcome.passed is helped
    assert outcome.reason.startswith(f"{gain:+.3f} dB") and "0.005 dB" in outcome.reason


def test_the_control_of_a_student_is_its_own() -> None:
    found = recipe()
    student, control = found.models["fast"], found.models["fast_control"]
    assert isinstance(student, StudentModel) and isinstance(control, PlainModel)
    assert (control.network, control.train) == (student.network, student.train)
    worse = {**RESULTS, "fast_control": {"x": score(26.3), "y": score(25.3)}}
    said = {o.name: o for o in quality_checks(found, "fast", worse)}["teacher_helped"]
    assert not said.passed and said.reason.startswith("-0.200 dB against the same network")
    assert said.numbers["gain"] == pytest.approx(-0.2)


def test_a_student_without_a_control_is_told_to_have_one() -> None:
    said = {o.name: o for o in quality_checks(recipe(), "lonely", RESULTS)}["teacher_helped"]
    assert not said.passed and "set its `control` to true" in said.reason


def test_each_kind_has_its_checks() -> None:
    every = {
        name: [o.name for o in release_checks(recipe(), name, RESULTS, None)]
        for name in ("alone", "blend", "fast")
    }
    shared = ["beats_bicubic", "colour_offset"]
    assert every == {
        "alone": [*shared, "no_regression"],
        "blend": [*shared, "beats_best_expert", "no_regression"],
        "fast": [*shared, "teacher_helped", "no_regression"],
    }
    assert {name for names in every.values() for name in names} == set(DESCRIPTIONS)


def test_without_measurements_every_check_fails_and_says_so() -> None:
    for name in ("alone", "blend", "fast"):
        outcomes = release_checks(recipe(), name, {}, None)
        assert not any(o.passed for o in outcomes)
        assert all("not measured" in o.reason for o in outcomes)
        assert all("\n" not in o.reason for o in outcomes)


def test_scores_of_a_leaderboard() -> None:
    rows = [{"name": n, "kind": "x", "benchmarks": scores} for n, scores in RESULTS.items()]
    assert scores_of({"rows": rows}) == RESULTS
