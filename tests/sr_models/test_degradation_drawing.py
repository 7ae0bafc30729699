"""Ranges and what is drawn from them: within bounds, the same everywhere, each step on its own."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sr_models.degradations.drawing import Drawn, draw, sample_key, stream
from sr_models.degradations.presets import LIGHT, PRESETS, REALWORLD
from sr_models.degradations.steps import Blur, Jpeg, Noise, Process, Resize, Shuffle, Sinc, Webp


def keys(count: int) -> list[bytes]:
    return [sample_key(0, bytes(32), n) for n in range(count)]


def drawn(process: Process, count: int = 400, side: int = 256) -> list[tuple[Drawn, ...]]:
    return [draw(process, side, side, 4, key) for key in keys(count)]


@given(
    st.sampled_from(sorted(PRESETS)),
    st.integers(0, 2**31),
    st.integers(0, 63),
    st.sampled_from([2, 3, 4, 8]),
    st.integers(2, 40),
    st.integers(2, 40),
)
def test_every_sample_ends_at_the_size_of_lr(
    preset: str, seed: int, variant: int, scale: int, rows: int, columns: int
) -> None:
    key = sample_key(seed, b"\1" * 32, variant)
    steps = draw(PRESETS[preset], rows * scale, columns * scale, scale, key)
    assert steps == draw(PRESETS[preset], rows * scale, columns * scale, scale, key)
    last = [s for s in steps if s.op == "resize"][-1]
    assert (last.numbers["height"], last.numbers["width"]) == (rows, columns)


def test_realworld_draws_what_its_specification_says() -> None:
    samples = drawn(REALWORLD)
    shares = Counter((s.op, s.position) for steps in samples for s in steps)
    expected = {
        ("blur", 0): 0.8, ("resize", 1): 1, ("noise", 2): 0.7, ("jpeg", 3): 1,
        ("blur", 4): 0.7, ("resize", 5): 1, ("noise", 6): 0.5, ("sinc", 7): 0.6, ("jpeg", 8): 1,
    }  # fmt: skip
    assert set(shares) == set(expected)
    for step, share in expected.items():
        tolerance = 5 * (share * (1 - share) / len(samples)) ** 0.5
        assert abs(shares[step] / len(samples) - share) <= tolerance, step
    numbers: dict[tuple[str, int, str], list[float]] = {}
    for steps in samples:
        for s in steps:
            for name, value in s.numbers.items():
                numbers.setdefault((s.op, s.position, name), []).append(value)
    assert set(numbers["blur", 0, "size"]) == {7, 9, 11, 13, 15, 17, 19, 21}
    assert set(numbers["sinc", 7, "size"]) == {15, 17, 19, 21}
    for (op, position, name), (low, high) in {
        ("noise", 2, "sigma"): (0.01, 0.1),
        ("noise", 6, "photons"): (10, 100),
        ("jpeg", 3, "quality"): (75, 95),
        ("jpeg", 8, "quality"): (30, 85),
        ("sinc", 7, "cutoff"): (0.5, 0.8),
        ("resize", 1, "height"): (128, 256),
    }.items():
        found = numbers[op, position, name]
        assert low <= min(found) < low + 0.1 * (high - low), (op, name)
        assert high - 0.1 * (high - low) < max(found) <= high, (op, name)
    kinds = Counter(s.kind for steps in samples for s in steps if s.position == 0)
    assert min(kinds.values()) > 0.15 * sum(kinds.values())
    orders = Counter(
        tuple(s.op for s in steps if s.position >= 7) for steps in samples if len(steps) > 6
    )
    assert orders[("sinc", "jpeg")] > 60
    assert orders[("jpeg", "sinc")] > 60


def test_a_step_keeps_its_numbers_when_others_change() -> None:
    one = Process(steps=(Blur(), Resize(), Noise(sigma=(0.01, 0.02))))
    other = Process(steps=(Blur(), Resize(), Noise(sigma=(0.3, 0.4)), Jpeg()))
    for key in keys(20):
        first, second = draw(one, 64, 64, 4, key), draw(other, 64, 64, 4, key)
        assert first[:2] == second[:2]
        assert len(second) == len(first) + 1


def test_draws_are_these_on_every_machine() -> None:
    key = sample_key(42, bytes(range(32)), 1)
    assert key.hex()[:16] == "0680f237a5675eef"
    assert stream(key, 3, "draw") % 1000 == 701
    steps = draw(REALWORLD, 256, 256, 4, key)
    said = [(s.op, s.kind, {k: round(v, 6) for k, v in s.numbers.items()}) for s in steps]
    assert said == [
        ("blur", "isotropic", {"size": 17, "sigma": 3.262518}),
        ("resize", "lanczos", {"height": 191, "width": 191}),
        ("jpeg", "4:2:0", {"quality": 89}),
        ("blur", "plateau", {"size": 21, "sigma": 2.276697, "ratio": 0.525904}),
        ("resize", "lanczos", {"height": 64, "width": 64}),
        ("jpeg", "4:2:2", {"quality": 66}),
    ]


def test_light_is_lighter() -> None:
    for steps in drawn(LIGHT, 100):
        assert {s.op for s in steps} <= {"blur", "resize", "noise", "jpeg"}
        assert all(s.numbers["quality"] >= 85 for s in steps if s.op == "jpeg")
        assert all(s.numbers["sigma"] <= 0.02 for s in steps if s.op == "noise")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "at least 1"),
        ([{"kind": "blur"}], "exactly one `resize` must be without `factor`"),
        ([{"kind": "resize"}, {"kind": "resize"}], "2 of them resize to the size of LR"),
        ([{"kind": "resize", "probability": 0.5}], "always happens"),
        ([{"kind": "resize"}, {"kind": "resize", "factor": [0.5, 1]}], "after the one to the size"),
        (
            [{"kind": "shuffle", "steps": [{"kind": "resize"}, {"kind": "jpeg"}]}],
            "0 of them resize to the size of LR",
        ),
        ([{"kind": "resize", "factor": [1, 4]}] * 2 + [{"kind": "resize"}], "16 times together"),
        ([{"kind": "resize"}, {"kind": "blur", "size": [8, 21]}], "kernel sizes are odd"),
        ([{"kind": "resize"}, {"kind": "blur", "size": [21, 7]}], "begins above its end"),
        ([{"kind": "resize"}, {"kind": "jpeg", "quality": [0, 50]}], "greater than or equal to 1"),
        ([{"kind": "resize"}, {"kind": "noise", "kinds": ["pink"]}], "'gaussian' or 'poisson'"),
        ([{"kind": "resize"}, {"kind": "blur", "sigma": [1, 2]}], "Extra inputs"),
        ([{"kind": "resize"}, {"kind": "blr"}], "does not match any of the expected tags"),
        ([{"kind": "resize"}, {"kind": "sinc", "cutoff": [0, 0.5]}], "greater than 0"),
    ],
)
def test_ranges_that_cannot_be_are_refused(steps: list[Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Process.model_validate({"steps": steps})


def test_steps_are_read_back_from_what_is_written() -> None:
    own = Process(steps=(Shuffle(steps=(Webp(quality=(10, 20)), Sinc())), Resize()))
    assert Process.model_validate(own.model_dump(mode="json")) == own
    assert [leaf.kind for leaf in own.leaves()] == ["webp", "sinc", "resize"]


def test_hr_must_fit_the_scale() -> None:
    with pytest.raises(ValueError, match="10x12 px is no multiple of scale 4"):
        draw(LIGHT, 10, 12, 4, keys(1)[0])
