"""Training batches are pure, aligned and complete; held-out images are put together whole."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_assets.stores.fixed_point import (
    SR_STEP,
    dequantise,
    dequantise_features,
    quantise,
    quantise_features,
)
from sr_assets.stores.samples import DatasetStores, Maps, TrainingSamples
from sr_models.degradations.bicubic import downscale_uint8
from sr_models.training.stored import dequantised

SCALE, SIDE = 2, 24


class Memory:
    """The three readers of one dataset in one object: patches, pairs and a cache."""

    def __init__(self, images: int, per_image: int, variants: int = 1, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        count = images * per_image
        self.variants = variants
        self.images = [f"folder/{i}.png" for i in range(images)]
        self.image = np.repeat(np.arange(images, dtype=np.int32), per_image)
        self.y = np.tile(np.arange(per_image, dtype=np.int32) // 2 * SIDE, images)
        self.x = np.tile(np.arange(per_image, dtype=np.int32) % 2 * SIDE, images)
        self.split = (self.image == images - 1).astype(np.uint8)
        rough = draw.integers(0, 256, (count, SIDE // 4, SIDE // 4, 3))
        self._hr = rough.repeat(4, 1).repeat(4, 2).astype(np.uint8)
        self.feature_shape: tuple[int, ...] | None = (6, SIDE // SCALE, SIDE // SCALE)
        self.sr_step: float | None = SR_STEP

    def hr(self, n: int) -> np.ndarray:
        return self._hr[n]

    def lr(self, n: int, k: int) -> np.ndarray:
        lr = downscale_uint8(self._hr[n], SCALE)
        return (lr // (k + 1)).astype(np.uint8)  # variants are told apart by their brightness

    def sr(self, n: int, k: int) -> np.ndarray:
        return dequantise(self.sr_stored(n, k))

    def sr_stored(self, n: int, k: int) -> np.ndarray:
        """HR as an expert might return it: planar, a little off and out of range."""
        return quantise(self._hr[n].transpose(2, 0, 1).astype(np.float32) / 255 * 1.1 - 0.05)

    def features_stored(self, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """LR as a tap might return it: once as it is, once negative and seven times as large."""
        lr = self.lr(n, k).transpose(2, 0, 1).astype(np.float32)
        return quantise_features(np.concatenate([lr, -7 * lr]))

    def hr_batch(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        return filled([self.hr(n) for n in indices], out)

    def lr_batch(
        self, indices: np.ndarray, variants: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        return filled([self.lr(n, k) for n, k in zip(indices, variants, strict=True)], out)

    def sr_stored_batch(
        self, indices: np.ndarray, variants: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        both = zip(indices, variants, strict=True)
        if self.sr_step is None:
            return filled([self.sr(n, k) for n, k in both], out)
        return filled([self.sr_stored(n, k) for n, k in both], out)

    def features_stored_batch(
        self, indices: np.ndarray, variants: np.ndarray, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        both = [self.features_stored(n, k) for n, k in zip(indices, variants, strict=True)]
        values, scale = (np.stack(part) for part in zip(*both, strict=True))
        if self.sr_step is None:
            return filled(list(dequantise_features(values, scale)), out), None
        return filled(list(values), out), scale


def filled(rows: list[np.ndarray], out: np.ndarray | None) -> np.ndarray:
    """One array of all rows, in `out` where there is one, as the stores' readers do it."""
    return np.stack(rows, out=out)


def floating(batch: Maps) -> Maps:
    """A batch as the network sees it."""
    tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
    return {name: values.numpy() for name, values in dequantised(tensors).items()}


def dataset(name: str, memory: Memory, caches: tuple[str, ...] = ("hat",)) -> DatasetStores:
    any_memory = cast(Any, memory)
    return DatasetStores(name, any_memory, any_memory, dict.fromkeys(caches, any_memory))


def two_datasets() -> TrainingSamples:
    first, second = Memory(3, 4, 2, seed=1), Memory(2, 3, 1, seed=2)
    return TrainingSamples([dataset("a", first), dataset("b", second)], SCALE, features=("hat",))


numbers, sizes, seeds = st.integers(0, 60), st.integers(1, 7), st.integers(0, 2**31)


@settings(max_examples=30, deadline=None)
@given(number=numbers, size=sizes, crop=st.integers(1, SIDE // SCALE), seed=seeds)
def test_a_batch_is_a_function_of_its_arguments(
    number: int, size: int, crop: int, seed: int
) -> None:
    used = two_datasets()
    used.batch(number + 3, size, crop, seed + 1)  # what was read before must not matter
    one, other = (
        used.batch(number, size, crop, seed),
        two_datasets().batch(number, size, crop, seed),
    )
    scales = {"scale/sr/hat": 1, "scale/features/hat": 6}
    kinds = {"lr": "uint8", "hr": "uint8", "sr/hat": "int16", "features/hat": "int8"}
    assert one.keys() == other.keys() == kinds.keys() | scales.keys()
    for key, array in one.items():
        assert array.tobytes() == other[key].tobytes()
        if key in scales:
            assert array.shape == (size, scales[key]) and array.dtype == np.float32
            continue
        channels = 6 if key.startswith("features") else 3
        side = crop * (SCALE if key in ("hr", "sr/hat") else 1)
        assert array.shape == (size, channels, side, side) and array.dtype == kinds[key]
    for key, array in floating(one).items():
        assert array.dtype == np.float32 and array.shape == one[key].shape


def test_a_batch_outlives_the_next_one() -> None:
    """What is read into memory that is used again has left it by then."""
    samples = two_datasets()
    kept = samples.batch(0, 4, 8, 1)
    before = {key: array.copy() for key, array in kept.items()}
    for number in range(1, 6):
        samples.batch(number, 4, 8, 1)
    assert all(np.array_equal(kept[key], before[key]) for key in before)


def test_a_batch_lies_where_it_is_told() -> None:
    given: list[np.ndarray] = []

    def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        given.append(np.empty(shape, dtype))
        return given[-1]

    batch = two_datasets().batch(3, 5, 8, 1, empty)
    assert sorted(map(id, batch.values())) == sorted(map(id, given))
    usual = two_datasets().batch(3, 5, 8, 1)
    assert all(np.array_equal(batch[key], usual[key]) for key in usual)


def test_lossless_caches_come_as_floats_without_scales() -> None:
    exact, rounded = Memory(3, 4, seed=1), Memory(3, 4, seed=1)
    exact.sr_step = None
    one, other = (
        TrainingSamples([dataset("a", memory)], SCALE, features=("hat",)).batch(0, 6, 8, 1)
        for memory in (exact, rounded)
    )
    assert not any(key.startswith("scale/") for key in one)
    assert one["sr/hat"].dtype == one["features/hat"].dtype == np.float32
    for key, array in floating(other).items():
        assert np.array_equal(floating(one)[key], array)


@settings(max_examples=30, deadline=None)
@given(size=sizes, number=numbers, seed=seeds)
def test_the_same_run_whatever_the_batch(size: int, number: int, seed: int) -> None:
    """Accumulating two halves sees what one whole batch sees."""
    samples = two_datasets()
    whole = samples.batch(number, 2 * size, 8, seed)
    halves = [samples.batch(2 * number + i, size, 8, seed) for i in range(2)]
    assert np.array_equal(whole["lr"], np.concatenate([half["lr"] for half in halves]))


@settings(max_examples=40, deadline=None)
@given(number=numbers, seed=seeds, crop=st.integers(6, SIDE // SCALE))
def test_every_picture_of_a_sample_is_cut_and_turned_alike(
    number: int, seed: int, crop: int
) -> None:
    samples = TrainingSamples([dataset("a", Memory(3, 4))], SCALE, features=("hat",))
    batch = floating(samples.batch(number, 3, crop, seed))
    assert np.allclose(batch["sr/hat"], batch["hr"] * 1.1 - 0.05, atol=SR_STEP)
    grey = batch["lr"] * 255
    features = np.concatenate([grey, -7 * grey], 1)
    assert np.abs(batch["features/hat"] - features).max() <= 7 * 255 / 127 / 2 + 0.01
    for lr, hr in zip(batch["lr"], batch["hr"], strict=True):
        again = downscale_uint8(np.rint(hr.transpose(1, 2, 0) * 255).astype(np.uint8), SCALE)
        inner = slice(2, -2)  # at the edge of a crop the filter sees other pixels than in the patch
        difference = again.transpose(2, 0, 1)[:, inner, inner] - lr[:, inner, inner] * 255
        assert np.abs(difference).max() <= 1.01


@settings(max_examples=20, deadline=None)
@given(seed=seeds, epoch=st.integers(0, 3))
def test_an_epoch_covers_every_training_sample_once(seed: int, epoch: int) -> None:
    samples = two_datasets()
    assert len(samples) == 2 * 4 * 2 + 3  # the last image of each dataset is held out
    positions = range(epoch * len(samples), (epoch + 1) * len(samples))
    seen = [samples.sample(p, seed) for p in positions]
    assert sorted(seen) == sorted(
        [(0, n, k) for n in range(8) for k in range(2)] + [(1, n, 0) for n in range(3)]
    )
    following = [samples.sample(p + len(samples), seed) for p in positions]
    assert seen != following and sorted(seen) == sorted(following)


def test_all_orientations_and_many_places_occur() -> None:
    memory = Memory(2, 1)
    batch = TrainingSamples([dataset("a", memory)], SCALE).batch(0, 200, SIDE // SCALE, 7)
    assert len({hr.tobytes() for hr in batch["hr"]}) == 8
    batch = TrainingSamples([dataset("a", memory)], SCALE).batch(0, 400, SIDE // SCALE - 1, 7)
    assert len({hr.tobytes() for hr in batch["hr"]}) == 8 * 4


def test_held_out_images_come_whole_and_never_train() -> None:
    memories = {"a": Memory(3, 4, 2, seed=1), "b": Memory(2, 4, 1, seed=2)}
    samples = TrainingSamples(
        [dataset(n, m, ("hat", "grl")) for n, m in memories.items()], SCALE, features=("grl",)
    )
    images = {image.name: image for image in samples.validation_images()}
    assert list(images) == ["a/folder/2.png", "b/folder/1.png"]
    image = images["a/folder/2.png"]
    parts = [samples.held_out(image, slice(a, a + 3)) for a in (0, 3)]
    maps = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    whole = image.assemble(maps["hr"].transpose(0, 2, 3, 1))
    top, bottom = (
        np.concatenate([memories["a"].hr(8 + i), memories["a"].hr(9 + i)], 1) for i in (0, 2)
    )
    assert np.array_equal(whole, np.concatenate([top, bottom]))
    seen = floating(maps)
    assert seen.keys() == {"lr", "hr", "sr/hat", "sr/grl", "features/grl"}
    for row, n in enumerate(range(8, 12)):
        lr = memories["a"].lr(n, 0).transpose(2, 0, 1) / np.float32(255)
        assert np.array_equal(seen["lr"][row], lr)
        assert np.array_equal(seen["sr/hat"][row], memories["a"].sr(n, 0))
        features = dequantise_features(*memories["a"].features_stored(n, 0))
        assert np.array_equal(seen["features/grl"][row], features)
    trained = {samples.sample(p, 0)[:2] for p in range(len(samples))}
    assert not trained & {(0, n) for n in range(8, 12)}


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="at least one dataset"):
        TrainingSamples([], SCALE)
    with pytest.raises(ValueError, match="a is in the training split"):
        TrainingSamples([dataset("a", Memory(1, 4))], SCALE)
    unsplit = Memory(2, 4)
    unsplit.split[:] = 0
    with pytest.raises(ValueError, match="a is in the validation split"):
        TrainingSamples([dataset("a", unsplit)], SCALE)
    both = [dataset("a", Memory(2, 1)), dataset("b", Memory(2, 1), ("hat", "grl"))]
    with pytest.raises(ValueError, match="dataset b has caches of"):
        TrainingSamples(both, SCALE)
    exact = Memory(2, 1)
    exact.sr_step = None
    with pytest.raises(ValueError, match="caches of hat for b and a have different presets"):
        TrainingSamples([dataset("a", Memory(2, 1)), dataset("b", exact)], SCALE)
    plain = Memory(2, 1)
    plain.feature_shape = None
    with pytest.raises(ValueError, match=r"expert hat has no features .* set experts\.hat\.feat"):
        TrainingSamples([dataset("a", plain)], SCALE, features=("hat",))
    with pytest.raises(ValueError, match=r"features of grl .* caches of \['hat'\] only"):
        TrainingSamples([dataset("a", plain)], SCALE, features=("grl",))
    with pytest.raises(ValueError, match="a crop of 13 does not fit"):
        two_datasets().batch(0, 1, 13, 0)


class WithoutStoredLr(Memory):
    """Breaks when the stored LR of a training patch is read."""

    def lr(self, n: int, k: int) -> np.ndarray:
        assert self.split[n], "the stored LR of a training patch was read"
        return super().lr(n, k)


def drawn_lr(hr: np.ndarray, look: str) -> np.ndarray:
    """LR whose brightness tells which look it is."""
    return (downscale_uint8(hr, SCALE) // 4 + sum(look.encode()) % 192).astype(np.uint8)


def online(looks: list[str] | None = None) -> TrainingSamples:
    def fresh(hr: np.ndarray, look: str) -> np.ndarray:
        if looks is not None:
            looks.append(look)
        return drawn_lr(hr, look)

    stores = [dataset("a", WithoutStoredLr(3, 4, seed=1), ())]
    stores.append(dataset("b", WithoutStoredLr(2, 3, 2, seed=2), ()))
    return TrainingSamples(stores, SCALE, fresh=fresh)


@settings(max_examples=20, deadline=None)
@given(number=numbers, size=sizes, seed=seeds)
def test_online_batches_are_functions_of_their_arguments(number: int, size: int, seed: int) -> None:
    used = online()
    used.batch(number + 3, size, 8, seed + 1)
    one, other = used.batch(number, size, 8, seed), online().batch(number, size, 8, seed)
    assert one.keys() == other.keys() == {"lr", "hr"}
    assert all(one[key].tobytes() == other[key].tobytes() for key in one)


def test_online_every_look_at_a_sample_has_an_lr_of_its_own() -> None:
    looks: list[str] = []
    samples = online(looks)
    epoch = len(samples)
    for number in range(3 * epoch):
        samples.batch(number, 1, 8, seed=5)
    assert len(looks) == len(set(looks)) == 3 * epoch
    seen = set(looks)
    for number in range(epoch):
        samples.batch(number, 1, 8, seed=6)
    assert not seen & set(looks[3 * epoch :])  # another seed looks at everything anew


def test_online_lr_lies_on_the_hr_that_it_was_made_of() -> None:
    samples = online()
    for number in range(len(samples)):
        batch = floating(samples.batch(number, 1, 8, seed=2))
        expected = batch["hr"].reshape(1, 3, 8, SCALE, 8, SCALE).mean((3, 5)) / 4
        rest = batch["lr"] - expected
        assert rest.std() < 0.02, "more than the brightness of the look is left"


def test_online_validation_sees_the_stored_lr() -> None:
    stored = TrainingSamples([dataset("a", Memory(3, 4, seed=1), ())], SCALE)
    stores = dataset("a", WithoutStoredLr(3, 4, seed=1), ())
    drawn = TrainingSamples([stores], SCALE, fresh=drawn_lr)
    images = list(stored.validation_images())
    assert images
    for one, other in zip(images, drawn.validation_images(), strict=True):
        assert one.name == other.name
        whole = slice(0, None)
        maps, others = stored.held_out(one, whole), drawn.held_out(other, whole)
        assert all(np.array_equal(maps[key], others[key]) for key in maps)


def test_online_is_refused_beside_cached_pictures() -> None:
    with pytest.raises(ValueError, match=r"^online: the cached pictures of hat would not follow"):
        TrainingSamples([dataset("a", Memory(3, 4))], SCALE, fresh=drawn_lr)
