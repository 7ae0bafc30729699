"""Augmented training samples: every map stays aligned, draws depend on nothing but their place."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_assets.recipe.loading import RecipeError, load_recipe
from sr_assets.recipe.training import Augment
from sr_assets.stores.fixed_point import SR_STEP
from sr_assets.stores.samples import DatasetStores, Empty, Maps, TrainingSamples
from sr_models.degradations.bicubic import downscale_uint8
from sr_models.training.stored import dequantised

SCALE, SIDE, COUNT = 4, 96, 5  # coordinates fit in 8 bits, and LR ones in 7
LR_SIDE = SIDE // SCALE


@dataclass
class Coded:
    """All readers of one dataset; every pixel tells its row, its column and its patch."""

    variants: int = 1
    images: list[str] = field(default_factory=lambda: [f"{i}.png" for i in range(COUNT)])
    feature_shape: tuple[int, ...] = (3, LR_SIDE, LR_SIDE)

    sr_step: float = SR_STEP

    def __post_init__(self) -> None:
        self.image = np.arange(COUNT, dtype=np.int32)
        self.y = self.x = np.zeros(COUNT, np.int32)
        self.split = (self.image == COUNT - 1).astype(np.uint8)

    def hr(self, n: int) -> np.ndarray:
        return _coordinates(n, SIDE).transpose(1, 2, 0).astype(np.uint8)

    def lr(self, n: int, k: int) -> np.ndarray:
        return _coordinates(n, LR_SIDE).transpose(1, 2, 0).astype(np.uint8)

    def sr_stored(self, n: int, k: int) -> np.ndarray:
        return -_coordinates(n, SIDE).astype(np.int16)

    def features_stored(self, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        return _coordinates(n, LR_SIDE).astype(np.int8), np.array([1, 2, 4], np.float32)

    def hr_batch(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        return np.stack([self.hr(n) for n in indices], out=out)

    def lr_batch(
        self, indices: np.ndarray, variants: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        return np.stack([self.lr(n, 0) for n in indices], out=out)

    def sr_stored_batch(
        self, indices: np.ndarray, variants: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        return np.stack([self.sr_stored(n, 0) for n in indices], out=out)

    def features_stored_batch(
        self, indices: np.ndarray, variants: np.ndarray, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        both = [self.features_stored(n, 0) for n in indices]
        return np.stack([b[0] for b in both], out=out), np.stack([b[1] for b in both])


@dataclass
class Photos(Coded):
    """Random pictures of two by two pixels, and their true bicubic LR."""

    def hr(self, n: int) -> np.ndarray:
        rough = np.random.default_rng(n).integers(0, 256, (SIDE // 2, SIDE // 2, 3))
        return rough.repeat(2, 0).repeat(2, 1).astype(np.uint8)

    def lr(self, n: int, k: int) -> np.ndarray:
        return downscale_uint8(self.hr(n), SCALE)


@dataclass
class Flat(Coded):
    """Patches of one grey each: 10, 20, 30."""

    def hr(self, n: int) -> np.ndarray:
        return np.full((SIDE, SIDE, 3), 10 * n + 10, np.uint8)

    def lr(self, n: int, k: int) -> np.ndarray:
        return np.full((LR_SIDE, LR_SIDE, 3), 10 * n + 10, np.uint8)


def _coordinates(n: int, side: int) -> np.ndarray:
    y, x = np.indices((side, side))
    return np.stack([y, x, np.full_like(y, n)])


class Floating(TrainingSamples):
    """Batches as a network sees them."""

    def batch(self, number: int, size: int, crop: int, seed: int, empty: Empty = np.empty) -> Maps:
        maps = super().batch(number, size, crop, seed, empty)
        tensors = {name: torch.from_numpy(values) for name, values in maps.items()}
        return {name: values.numpy() for name, values in dequantised(tensors).items()}


def cached(augment: Augment) -> TrainingSamples:
    coded = cast(Any, Coded())
    stores = DatasetStores("a", coded, coded, {"hat": coded, "dat": coded})
    return Floating([stores], SCALE, features=("dat",), augment=augment)


def uncached(augment: Augment, of: type[Coded] = Photos) -> TrainingSamples:
    memory = cast(Any, of())
    return Floating([DatasetStores("a", memory, memory)], SCALE, augment=augment)


seeds, numbers = st.integers(0, 2**31), st.integers(0, 30)
geometric = st.builds(
    Augment, flips=st.booleans(), rotations=st.booleans(), margin=st.integers(0, 6)
)
chances = st.sampled_from([0.0, 0.5, 1.0])
consistent = st.builds(
    Augment,
    margin=st.integers(0, 2),
    colour_jitter=chances,
    blur=chances,
    crop_scale=st.sampled_from([0.0, 0.1, 0.5]),
    mixup=chances,
)


@settings(max_examples=60, deadline=None)
@given(augment=geometric, number=numbers, seed=seeds, crop=st.integers(1, LR_SIDE - 12))
def test_all_maps_of_a_sample_stay_aligned_within_the_margin(
    augment: Augment, number: int, seed: int, crop: int
) -> None:
    samples = cached(augment)
    batch = samples.batch(number, 3, crop, seed)
    lr, hr = (np.rint(batch[key] * 255).astype(int) for key in ("lr", "hr"))
    for slot, place in enumerate(lr):
        assert (place[2] == samples.sample(number * 3 + slot, seed)[1]).all()
        assert place[:2].min() >= augment.margin
        assert place[:2].max() < LR_SIDE - augment.margin
        down, right = place[:2, -1, 0] - place[:2, 0, 0], place[:2, 0, -1] - place[:2, 0, 0]
        if not augment.rotations:  # rows stay rows, and nothing stands on its head
            assert down.tolist() == [crop - 1, 0] and abs(right[1]) == crop - 1
        if not augment.flips:
            assert down[0] * right[1] - down[1] * right[0] == (crop - 1) ** 2
    enlarged = lr.repeat(SCALE, -2).repeat(SCALE, -1)
    assert np.array_equal(hr[:, :2] // SCALE, enlarged[:, :2])
    assert np.array_equal(hr[:, 2], enlarged[:, 2])
    for name in ("hat", "dat"):
        assert np.array_equal(np.rint(-batch[f"sr/{name}"] / np.float32(SR_STEP)), hr)
    assert np.array_equal(batch["features/dat"], lr * np.array([1, 2, 4])[:, None, None])
    assert "features/hat" not in batch


@settings(max_examples=60, deadline=None)
@given(augment=consistent, number=numbers, seed=seeds, crop=st.integers(14, 20))
def test_lr_stays_the_bicubic_of_hr(augment: Augment, number: int, seed: int, crop: int) -> None:
    from sr_models.degradations.bicubic import downscale

    batch = uncached(augment).batch(number, 3, crop, seed)
    assert batch["lr"].shape == (3, 3, crop, crop)
    assert batch["hr"].shape == (3, 3, crop * SCALE, crop * SCALE)
    again = downscale(torch.from_numpy(batch["hr"]), SCALE).numpy()
    inner = np.s_[..., 6:-6, 6:-6]  # at the edge of a crop the filters saw other pixels
    # Stored LR is rounded, and jitter makes half a grey level at most 1.05 ** 3 times as large.
    assert np.abs(again - batch["lr"])[inner].max() <= 1 / 255


@settings(max_examples=25, deadline=None)
@given(
    augment=consistent,
    cut=chances,
    size=st.integers(1, 4),
    number=numbers,
    seed=seeds,
)
def test_a_sample_depends_on_its_position_alone(
    augment: Augment, cut: float, size: int, number: int, seed: int
) -> None:
    augment = augment.model_copy(update={"cutblur": cut})
    one, other = uncached(augment), uncached(augment)
    one.batch(number + 5, 2, 12, seed + 1)  # what was read before must not matter
    whole = one.batch(number, 2 * size, 12, seed)
    halves = [other.batch(2 * number + i, size, 12, seed) for i in (1, 0)][::-1]
    for key, array in whole.items():
        assert array.tobytes() == np.concatenate([half[key] for half in halves]).tobytes()


@pytest.mark.parametrize("field_name", ["colour_jitter", "blur", "cutblur", "mixup"])
def test_an_augmentation_leaves_the_samples_it_does_not_choose(field_name: str) -> None:
    plain = uncached(Augment()).batch(0, 60, 16, 3)
    half = uncached(Augment(**{field_name: 0.5})).batch(0, 60, 16, 3)
    never = uncached(Augment(**{field_name: 1e-12})).batch(0, 60, 16, 3)
    same = [np.array_equal(*pictures) for pictures in zip(plain["lr"], half["lr"], strict=True)]
    assert 15 < sum(same) < 45
    assert all(np.array_equal(plain["hr"][i], half["hr"][i]) for i in range(60) if same[i])
    assert all(np.array_equal(plain[key], never[key]) for key in plain)


def test_two_augmentations_choose_independently() -> None:
    plain, jitter, both = (
        uncached(Augment(**fields)).batch(0, 40, 16, 3)["hr"]
        for fields in ({}, {"colour_jitter": 0.5}, {"colour_jitter": 0.5, "blur": 0.5})
    )
    chosen = [not np.array_equal(a, b) for a, b in zip(plain, jitter, strict=True)]
    left = [np.array_equal(a, b) for a, b in zip(jitter, both, strict=True)]
    assert {(c, k) for c, k in zip(chosen, left, strict=True)} == {
        *((False, False), (False, True), (True, False), (True, True))
    }


def test_the_draws_of_a_run_stay_what_they_were() -> None:
    """A run that goes on after an update must find its order, places and orientations again."""
    lr = cached(Augment()).batch(0, 6, 8, 42)["lr"] * 255
    first, last = np.rint(lr[:, :, 0, 0]), np.rint(lr[:, :2, -1, -1])
    assert first.tolist() == [
        *([10, 20, 3], [10, 9, 2], [23, 8, 1], [12, 15, 0], [11, 19, 1], [9, 15, 3])
    ]
    assert last.tolist() == [[17, 13], [3, 16], [16, 15], [19, 8], [18, 12], [2, 22]]


def test_switching_flips_off_keeps_the_places() -> None:
    usual, still = (
        cached(Augment(flips=on, rotations=on)).batch(0, 30, 8, 5)["lr"] for on in (True, False)
    )
    for turned, upright in zip(usual, still, strict=True):
        assert np.array_equal(np.sort(turned.reshape(3, -1)), np.sort(upright.reshape(3, -1)))


def test_crops_are_zoomed_both_ways_and_no_further() -> None:
    upright = Augment(crop_scale=0.1, flips=False, rotations=False, margin=1)
    hr = uncached(upright, Coded).batch(0, 60, 20, 1)["hr"] * 255
    slopes = (hr[:, 0, 50, 40] - hr[:, 0, 30, 40]) / 20  # source rows for one of the crop's
    assert slopes.min() == pytest.approx(0.9, abs=0.01)
    assert slopes.max() == pytest.approx(1.1, abs=0.01) and len({*slopes.round(2)}) > 3
    assert hr[:, :2].min() >= SCALE - 1 and hr[:, :2].max() <= SIDE - SCALE  # within the margin


def test_cutblur_never_touches_the_target() -> None:
    plain, cut = (uncached(Augment(cutblur=p)).batch(0, 40, 16, 3) for p in (0.0, 1.0))
    assert np.array_equal(plain["hr"], cut["hr"])
    changed = (np.abs(plain["lr"] - cut["lr"]).max(1) > 1e-6).mean((1, 2))
    assert (changed > 0).all() and (changed < 1).all()
    assert changed.min() < 0.2 and changed.max() > 0.8  # regions, and all but a region


def test_mixup_joins_two_samples_with_one_weight() -> None:
    samples = uncached(Augment(mixup=1.0), Flat)
    batch = samples.batch(0, 40, 8, 3)
    greys = [10 * samples.sample(position, 3)[1] + 10 for position in range(40)]
    mixed = batch["hr"][:, 0, 0, 0] * 255
    assert np.ptp(batch["hr"], axis=(1, 2, 3)).max() < 1e-6
    assert np.allclose(batch["lr"][:, 0, 0, 0] * 255, mixed, atol=1e-3)
    assert mixed.min() > 9.999 and mixed.max() < 40.001
    assert sum(not np.isclose(a, b) for a, b in zip(mixed, greys, strict=True)) > 20


def test_what_cannot_be_done_is_named() -> None:
    with pytest.raises(ValueError, match=r"train\.augment\.blur .* of hat, dat would not follow"):
        cached(Augment(blur=0.1))
    message = r"crop of 20 does not fit in the 18 px that train\.augment\.margin 3 leaves"
    with pytest.raises(ValueError, match=message):
        cached(Augment(margin=3)).batch(0, 1, 20, 0)


EXPERT = "experts: {hat: {source: {kind: builtin, name: hat_demo_x4}}}\n"


def recipe_text(model: str, augment: str) -> str:
    return (
        "name: mine\ndatasets:\n  photos:\n    source: {kind: folder, path: pictures}\n" + EXPERT
        + f"models:\n  m:\n    {model}\n    train:\n      crop: 56\n      augment: {augment}\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "augment", "words"),
    [
        ("kind: gate", "{blur: 0.1}", "models.m.train.augment.blur: this model learns from cached"),
        ("kind: fusion", "{mixup: 1}", "set it to 0, or train the fusion with `experts: live`"),
        (
            "kind: student\n    network: {architecture: SPAN}\n    teachers: [hat]",
            "{colour_jitter: 0.2}",
            "models.m.train.augment.colour_jitter: this model learns from cached",
        ),
        ("kind: gate", "{margin: 5}", "augment.margin 5 leaves 54 px of an LR patch (64), less"),
    ],
)
def test_a_recipe_that_cannot_be_augmented_so_is_refused(
    tmp_path: Path, model: str, augment: str, words: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe_text(model, augment))
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("model", "augment"),
    [
        ("kind: plain\n    network: {architecture: SPAN}", "{blur: 0.1, cutblur: 0.5, margin: 4}"),
        ("kind: fusion\n    experts: live", "{colour_jitter: 0.2}"),
        ("kind: gate", "{flips: false, rotations: false, margin: 4}"),
    ],
)
def test_what_can_be_augmented_loads(tmp_path: Path, model: str, augment: str) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe_text(model, augment))
    assert load_recipe(tmp_path / "recipe.yaml").models["m"].train.crop == 56
