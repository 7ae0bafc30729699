"""Kinds of damage, means by kind, and the words for both; measured rows are in test_evaluation."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_assets.evaluation.damage import choose_examples
from sr_assets.evaluation.damage_kinds import NONE, Kind, kinds_in, kinds_of
from sr_assets.evaluation.damage_means import FEWEST, markdown, means_by_kind, spots
from sr_assets.report.damage import damage_section
from sr_assets.report.damage_words import describe, step_words
from sr_assets.stores.pairs import AppliedStep
from sr_models.degradations.drawing import draw, sample_key
from sr_models.degradations.presets import LIGHT, PRESETS, REALWORLD
from sr_models.degradations.steps import Blur, Jpeg, Noise, Process, Resize, Webp


def drawn(process: Process, variant: int) -> tuple[AppliedStep, ...]:
    steps = draw(process, 64, 64, 4, sample_key(7, b"patch", variant))
    return tuple(AppliedStep(s.op, s.kind, s.numbers, s.position) for s in steps)


def labels(kinds: tuple[Kind, ...], steps: tuple[AppliedStep, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number in kinds_in(kinds, steps):
        found.setdefault(kinds[number].group, []).append(kinds[number].label)
    return found


def test_groups_are_the_steps_in_the_order_of_the_recipe() -> None:
    assert list(dict.fromkeys(kind.group for kind in kinds_of(REALWORLD))) == [
        "blur 1", "resize 1", "noise 1", "JPEG 1", "blur 2", "resize 2", "noise 2", "sinc",
        "JPEG 2", "as it came",
    ]  # fmt: skip
    light = [kind.group for kind in kinds_of(LIGHT)]
    assert list(dict.fromkeys(light)) == ["blur", "resize", "noise", "JPEG", "as it came"]


def test_a_sample_has_the_kinds_of_what_was_done_to_it() -> None:
    steps = (
        AppliedStep("blur", "anisotropic", {"sigma_x": 1.0, "sigma_y": 4.0, "degrees": 9}, 0),
        AppliedStep("resize", "area", {"height": 50, "width": 50}, 1),
        AppliedStep("noise", "gaussian", {"sigma": 0.05, "grey": 0}, 2),
        AppliedStep("jpeg", "4:2:0", {"quality": 75}, 3),
        AppliedStep("resize", "nearest", {"height": 16, "width": 16}, 5),
        AppliedStep("noise", "poisson", {"photons": 99.0, "grey": 1}, 6),
        AppliedStep("jpeg", "4:4:4", {"quality": 85}, 8),
        AppliedStep("sinc", "sinc", {"size": 15, "cutoff": 0.8}, 7),
    )
    assert labels(kinds_of(REALWORLD), steps) == {
        "blur 1": ["anisotropic", "σ 0.5–2.33 px"],  # √(1 · 4) = 2
        "resize 1": ["area"],
        "noise 1": ["Gaussian", "Gaussian, σ 0.04–0.07"],
        "JPEG 1": ["4:2:0", "quality 75–81"],
        "blur 2": ["none"],
        "resize 2": ["nearest"],
        "noise 2": ["Poisson", "Poisson, 70–100 photons"],
        "sinc": ["sinc", "cut-off 0.7–0.8 π"],
        "JPEG 2": ["4:4:4", "quality 68–85"],
    }


@pytest.mark.parametrize("preset", PRESETS)
@given(st.integers(0, 2**32))
def test_every_sample_has_one_kind_of_every_step(preset: str, variant: int) -> None:
    """And one third of its number, where there are thirds of what happened."""
    process = PRESETS[preset]
    kinds, steps = kinds_of(process), drawn(process, variant)
    numbers = kinds_in(kinds, steps)
    groups = list(dict.fromkeys(kind.group for kind in kinds))[:-1]
    whole = [kinds[n] for n in numbers if not kinds[n].part]
    assert [kind.group for kind in whole] == groups
    done = {step.position: step for step in steps}
    for kind in whole:
        assert kind.position is not None
        parts = [n for n in numbers if kinds[n].part and kinds[n].group == kind.group]
        step = done.get(kind.position)
        assert (step is None) == (kind.label == NONE)
        assert len(parts) == (step is not None and step.op != "resize")


@given(st.integers(1, 100), st.integers(0, 99), st.data())
def test_thirds_of_qualities_leave_nothing_out(low: int, span: int, data: Any) -> None:
    high = min(100, low + span)
    quality = data.draw(st.integers(low, high))
    process = Process(steps=(Resize(), Jpeg(quality=(low, high), subsampling=("4:4:4",))))
    step = AppliedStep("jpeg", "4:4:4", {"quality": quality}, 1)
    found = labels(kinds_of(process), (AppliedStep("resize", "area", {}, 0), step))["JPEG"]
    if high - low < 2:
        assert found == ["4:4:4"]
    else:
        first, last = map(int, found[1].removeprefix("quality ").split("–"))
        assert low <= first <= quality <= last <= high
        assert last - first + 1 in (-(-(high - low + 1) // 3), (high - low + 1) // 3)


def test_a_range_of_one_value_is_not_split() -> None:
    process = Process(steps=(Resize(), Noise(kinds=("gaussian",), sigma=(0.1, 0.1)), Webp()))
    known = [kind.label for kind in kinds_of(process) if kind.group in ("noise", "WebP")]
    assert known[:2] == ["none", "Gaussian"]
    assert known[2:] == ["none", "lossy", "quality 30–51", "quality 52–73", "quality 74–95"]
    twice = Process(steps=(Blur(kernels=("plateau", "plateau")), Resize()))
    assert [kind.label for kind in kinds_of(twice)].count("plateau") == 1


@pytest.mark.parametrize("steps", [(), (AppliedStep("paired", "", {}, 0),)])
def test_lr_that_was_brought_has_no_kind_of_damage(steps: tuple[AppliedStep, ...]) -> None:
    assert labels(kinds_of(REALWORLD), steps) == {"as it came": ["brought by the dataset"]}
    assert describe(steps) == "as it came"


def table(members: np.ndarray, bicubic: list[float], **rows: list[float]) -> dict[str, Any]:
    kinds = [{"group": f"g{i // 2}", "label": f"l{i}", "part": False} for i in range(4)]
    arrays = {name: np.array(values) for name, values in rows.items()}
    return means_by_kind(kinds, members, np.array(bicubic), arrays)


def test_means_are_over_the_samples_of_a_kind() -> None:
    members = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]], bool)
    found = table(members, [20.0, 22.0, 24.0, 30.0], a=[21.0, 24.0, 24.5, math.inf], b=[1.0] * 4)
    first, second = found["groups"][0]["kinds"]
    gains = [1.0, 2.0]
    assert first["samples"] == 2 and first["bicubic"] == 21
    assert first["rows"]["a"] == {
        "psnr_y": 22.5,
        "gain": 1.5,
        "error": pytest.approx(statistics.stdev(gains) / math.sqrt(2)),
    }
    # What one row meets exactly is left out of every row's mean, and of bicubic's.
    assert second["samples"] == 2 and second["bicubic"] == 24
    assert second["rows"]["a"] == {"psnr_y": 24.5, "gain": 0.5, "error": None}
    assert second["rows"]["b"]["gain"] == -23
    assert found["all"]["samples"] == 4
    assert found["all"]["rows"]["a"]["gain"] == pytest.approx(3.5 / 3)
    assert [kind["label"] for kind in found["groups"][1]["kinds"]] == ["l2"]  # l3 never occurs


def test_nothing_but_exact_samples_has_no_mean() -> None:
    members = np.array([[1, 0, 0, 0]] * FEWEST, bool)
    found = table(members, [math.inf] * FEWEST, a=[30.0] * FEWEST)
    assert found["all"]["rows"]["a"] == {"psnr_y": None, "gain": None, "error": None}
    assert spots(found, "a") == []
    assert markdown(found, "a").count("\n") == 1
    assert table(np.zeros((0, 4), bool), [], a=[])["groups"] == []


def test_a_kind_of_few_samples_is_not_called_weak() -> None:
    members = np.zeros((3 * FEWEST, 4), bool)
    members[: FEWEST - 1, 0] = members[FEWEST - 1 : 2 * FEWEST, 1] = members[2 * FEWEST :, 2] = True
    own = [21.0] * (FEWEST - 1) + [23.0] * (FEWEST + 1) + [22.0] * FEWEST
    found = table(members, [20.0] * len(own), a=own)
    assert [(spot.group, spot.label, spot.gain) for spot in spots(found, "a")] == [
        ("g1", "l2", 2.0),
        ("g0", "l1", 3.0),
    ]
    assert "Gains least over bicubic: with g1: l2 (+2.00 dB)" in markdown(found, "a")
    found["groups"][1]["kinds"][0]["label"] = NONE
    assert spots(found, "a")[0].words == "without g1"


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 1000))
def test_examples_cover_kinds_and_are_of_different_patches(
    count: int, wanted: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    members = random.random((count, 5)) < 0.4
    members[:, 0] = True
    patches = [("photos", n // 2) for n in range(count)]
    chosen = choose_examples(members, patches, wanted)
    assert len(chosen) == min(wanted, len(set(patches)))
    assert len({patches[n] for n in chosen}) == len(chosen)
    assert members[chosen[0]].sum() == members.sum(1).max()
    assert chosen == choose_examples(members, patches, wanted)


def test_examples_show_every_kind_where_they_can() -> None:
    members = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], bool)
    patches = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert choose_examples(members, patches, 3) == [0, 2, 4]
    assert choose_examples(np.zeros((0, 4), bool), [], 3) == []


def test_words_of_steps() -> None:
    steps = [
        AppliedStep("blur", "plateau", {"size": 21, "sigma": 2.13, "ratio": 0.4}, 0),
        AppliedStep(
            "blur", "anisotropic", {"size": 7, "sigma_x": 1, "sigma_y": 2.5, "degrees": 44.6}
        ),
        AppliedStep("resize", "area", {"height": 71, "width": 80}, 1),
        AppliedStep("noise", "gaussian", {"sigma": 0.0521, "grey": 1.0}, 2),
        AppliedStep("noise", "poisson", {"photons": 41.8, "grey": 0.0}, 2),
        AppliedStep("jpeg", "4:2:0", {"quality": 82}, 3),
        AppliedStep("webp", "lossy", {"quality": 60}, 3),
        AppliedStep("sinc", "sinc", {"size": 17, "cutoff": 0.634}, 4),
    ]
    assert describe(steps).split(" → ") == [
        "plateau blur σ 2.1 flat 40% 21 px",
        "anisotropic blur σ 1.0×2.5 at 45° 7 px",
        "area 80×71",
        "Gaussian noise σ 0.052, grey",
        "Poisson noise 42 photons, colour",
        "JPEG 82 4:2:0",
        "WebP 60",
        "sinc 0.63 π 17 px",
    ]
    assert step_words(AppliedStep("resize", "bicubic, antialiased", {})) == "bicubic, antialiased"
    assert step_words(AppliedStep("fog", "thick", {"depth": 2.0})) == "fog thick depth 2"


@given(st.integers(0, 2**32))
def test_whatever_is_drawn_has_words(variant: int) -> None:
    steps = drawn(REALWORLD, variant)
    words = [step_words(step) for step in steps]
    assert all(words) and not any("  " in word or word.endswith(",") for word in words)


def test_cells_are_coloured_by_their_distance_from_the_mean() -> None:
    members = np.zeros((3 * FEWEST, 4), bool)
    for kind in range(3):
        members[kind * FEWEST : (kind + 1) * FEWEST, kind] = True
    own = [21.0] * FEWEST + [22.0] * FEWEST + [24.5] * FEWEST
    damage = {
        **table(members, [20.0] * len(own), fast=own),
        "datasets": ["photos"],
        "examples": [],
    }
    row = {"name": "fast", "kind": "student"}
    section = damage_section({"rows": [row], "damage": damage})
    assert section is not None
    cells = [line["cells"][0] for group in section["groups"] for line in group["lines"]]
    assert [cell["side"] for cell in cells] == ["below", "below", "above"]
    assert cells[1]["heat"] < cells[0]["heat"] < cells[2]["heat"] <= 45
    assert section["all"]["cells"][0]["heat"] == 0
    (said,) = section["said"]
    assert said["weakest"]["words"] == "with g0: l0" and said["strongest"]["gain"] == 4.5
    assert damage_section({"rows": [row]}) is None
