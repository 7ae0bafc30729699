"""What training reads: random crops of several datasets, and whole held-out images.

Every crop is a pure function of (seed, number), so a resumed run sees what an undisturbed one does;
the draws are `augment.py`, the stores `patches.py`, `pairs.py` and `expert_cache.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from sr_assets.recipe.training import Augment
from sr_assets.stores.augment import ORDER, changed, draw_cut, draw_partner, generator
from sr_assets.stores.expert_cache import CacheReader, dequantise, dequantise_features
from sr_assets.stores.kept import KeptArrays
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import TRAIN, VALIDATION, PatchReader

#: HR patch, uint8 [S, S, 3], and the name of one look at it -> another LR, uint8 [s, s, 3].
Fresh = Callable[[np.ndarray, str], np.ndarray]


class NoSamplesError(ValueError):
    """There is nothing to train or to validate on."""


@dataclass(frozen=True)
class DatasetStores:
    """The stores of one dataset, opened: patches, their LR, and the cached SR of some networks."""

    name: str
    patches: PatchReader
    pairs: PairReader
    caches: Mapping[str, CacheReader] = field(default_factory=dict)


@dataclass(frozen=True)
class Tile:
    """One validation patch: where it lies in its image (HR px) and what is known about it."""

    y: int
    x: int
    hr: np.ndarray
    """uint8 [S, S, 3]"""
    lr: np.ndarray
    """float32 [3, s, s] in [0, 1]"""
    sr: Mapping[str, np.ndarray]
    """Name of a cached network -> float32 [3, S, S], not clamped."""
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name of a cached network -> float32 [C, s, s]."""


@dataclass(frozen=True)
class _Stored:
    """One planar map of a sample in the integers of its store, and what they stand for."""

    values: np.ndarray
    """uint8 or int16 [3, H, W]; int8 [C, h, w] for features."""
    scale: np.ndarray | None = None
    """float32 [C] of features."""

    def floating(self, values: np.ndarray) -> np.ndarray:
        """float32 of (a crop of) the values: pictures in [0, 1], SR and features as they were."""
        if self.scale is not None:
            return dequantise_features(values, self.scale)
        if values.dtype == np.uint8:
            return values.astype(np.float32) / np.float32(255)
        return dequantise(values)


class TrainingSamples:
    """The samples of several datasets: (dataset, patch, variant) of the training split.

    Args:
        datasets: opened stores; every one has the caches of the same networks.
        scale: upscaling factor.
        features: names of the cached networks whose features come with their SR.
        augment: what is done to a sample when it is read.
        fresh: makes LR anew each time a training sample is read; the stored LR when left out.
            Validation always sees the stored LR.

    Raises:
        ValueError: no dataset, no patch to train or to validate on in any, caches that differ
            between datasets, a cache without the features that are asked for, or an augmentation
            that cached pictures cannot follow.
    """

    def __init__(
        self,
        datasets: Sequence[DatasetStores],
        scale: int,
        features: Sequence[str] = (),
        augment: Augment | None = None,
        fresh: Fresh | None = None,
    ) -> None:
        self.datasets = tuple(datasets)
        self.scale = scale
        self.features = tuple(features)
        self.augment = augment or Augment()
        self._fresh = fresh
        if not self.datasets:
            raise NoSamplesError("training needs at least one dataset")
        self.names = tuple(self.datasets[0].caches)
        for dataset in self.datasets:
            if set(dataset.caches) != set(self.names):
                raise ValueError(
                    f"dataset {dataset.name} has caches of {sorted(dataset.caches)}, "
                    f"{self.datasets[0].name} of {sorted(self.names)}"
                )
            for name in self.features:
                _demand_features(dataset, name)
        if self.names and fresh:
            raise ValueError(
                f"online: the cached pictures of {', '.join(self.names)} would not follow a new LR"
            )
        if self.names and self.augment.photometric:
            raise ValueError(
                f"train.augment.{self.augment.photometric[0]} changes LR, and the cached pictures "
                f"of {', '.join(self.names)} would not follow: set it to 0"
            )
        self._index = np.concatenate([_training_index(i, d) for i, d in enumerate(self.datasets)])
        if not len(self._index):
            raise NoSamplesError(f"no patch of {self._named()} is in the training split")
        if not any((dataset.patches.split == VALIDATION).any() for dataset in self.datasets):
            raise NoSamplesError(f"no patch of {self._named()} is in the validation split")
        self._order: tuple[tuple[int, int], np.ndarray] | None = None
        self._kept = KeptArrays()

    def __len__(self) -> int:
        """Samples in one epoch."""
        return len(self._index)

    def batch(self, number: int, size: int, crop: int, seed: int) -> dict[str, np.ndarray]:
        """Batch `number` of an endless run; the same arguments give the same arrays.

        Samples come in a new random order each epoch; the batch that ends an epoch goes on into the
        next. Crops lie on the LR grid, and what `augment` says is done to all maps of a sample
        alike. Networks are not exactly equivariant: the SR and the features of a flipped or turned
        LR differ a little from the flipped or turned ones that are given here.

        Args:
            number: from 0.
            size: samples in the batch.
            crop: side of the LR crop, at most that of an LR patch less its margins.
            seed: of the order and of every augmentation.

        Returns:
            "lr" float32 [size, 3, crop, crop]; "hr" and one "sr/<name>" for each cached network,
            float32 [size, 3, crop * scale, crop * scale]; one "features/<name>" float32
            [size, C, crop, crop] for each that is asked for. LR and HR are in [0, 1], a little
            outside with `augment.photometric`; SR is not clamped.

        Raises:
            ValueError: `crop` is larger than what the margin leaves of an LR patch.
        """
        batch: dict[str, np.ndarray] = {}
        for slot in range(size):
            for key, values in self._sample(number * size + slot, crop, seed).items():
                if key not in batch:
                    batch[key] = np.empty((size, *values.shape), np.float32)
                batch[key][slot] = values
        return batch

    def sample(self, position: int, seed: int) -> tuple[int, int, int]:
        """(dataset, patch, variant) at `position` of the endless run."""
        epoch, offset = divmod(position, len(self._index))
        if self._order is None or self._order[0] != (seed, epoch):
            self._order = (seed, epoch), generator(seed, ORDER, epoch).permutation(len(self))
        dataset, patch, variant = self._index[self._order[1][offset]]
        return int(dataset), int(patch), int(variant)

    def _named(self) -> str:
        return ", ".join(dataset.name for dataset in self.datasets)

    def _sample(self, position: int, crop: int, seed: int) -> dict[str, np.ndarray]:
        found = self._cut(position, crop, seed)
        if not self.augment.photometric:
            return found
        pair = self._changed(found, position, crop, seed)
        partner = draw_partner(self.augment, len(self), seed, position)
        if partner:
            from sr_models.training.augment import mixup

            beside, weight = partner
            other = self._changed(self._cut(beside, crop, seed), beside, crop, seed)
            pair = mixup(pair, other, weight)
        return dict(zip(("lr", "hr"), pair, strict=True))

    def _cut(self, position: int, crop: int, seed: int) -> dict[str, np.ndarray]:
        number, patch, variant = self.sample(position, seed)
        look = f"{seed}:{position // len(self)}:{self.datasets[number].name}:{patch}:{variant}"
        stored = self._stored(number, patch, variant, look)
        side = stored["lr"].values.shape[-1]
        cut = draw_cut(self.augment, side, crop, seed, position)
        return {  # cut first, as integers: only what is kept becomes floating
            key: one.floating(cut.of(one.values, one.values.shape[-1] // side))
            for key, one in stored.items()
        }

    def _changed(
        self, pair: Mapping[str, np.ndarray], position: int, crop: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        return changed(self.augment, pair["lr"], pair["hr"], self.scale, crop, seed, position)

    def _stored(
        self, number: int, patch: int, variant: int, look: str | None = None
    ) -> dict[str, _Stored]:
        """All maps of one sample, from memory where they are there; LR anew for a named look."""
        dataset, keep = self.datasets[number], self._kept.get
        (hr,) = keep((number, "hr", patch), lambda: (dataset.patches.hr(patch),))
        if self._fresh and look is not None:
            lr = self._fresh(hr, look)
        else:
            read_lr = partial(_lr, dataset.pairs, patch, variant)
            (lr,) = keep((number, "lr", patch, variant), read_lr)
        found = {"lr": _Stored(lr.transpose(2, 0, 1)), "hr": _Stored(hr.transpose(2, 0, 1))}
        for name, cache in dataset.caches.items():
            read_sr = partial(_sr, cache, patch, variant)
            found[f"sr/{name}"] = _Stored(*keep((number, "sr", name, patch, variant), read_sr))
        for name in self.features:
            read = partial(dataset.caches[name].features_stored, patch, variant)
            where = (number, "features", name, patch, variant)
            found[f"features/{name}"] = _Stored(*keep(where, read))
        return found

    def validation_images(self) -> Iterator[tuple[str, list[Tile]]]:
        """The held-out images, one after the other: "<dataset>/<path>" and its tiles.

        Tiles do not overlap; each carries the first variant of its LR.
        """
        for number, dataset in enumerate(self.datasets):
            patches = dataset.patches
            held_out = np.flatnonzero(patches.split == VALIDATION)
            for image in np.unique(patches.image[held_out]):
                members = held_out[patches.image[held_out] == image]
                tiles = [self._tile(number, int(n)) for n in members]
                yield f"{dataset.name}/{patches.images[int(image)]}", tiles

    def _tile(self, number: int, n: int) -> Tile:
        patches, stored = self.datasets[number].patches, self._stored(number, n, 0)
        whole = {key: one.floating(one.values) for key, one in stored.items() if key != "hr"}
        return Tile(
            y=int(patches.y[n]),
            x=int(patches.x[n]),
            hr=stored["hr"].values.transpose(1, 2, 0),
            lr=whole["lr"],
            sr={name: whole[f"sr/{name}"] for name in self.names},
            features={name: whole[f"features/{name}"] for name in self.features},
        )


def assemble(tiles: Sequence[Tile], pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Puts the pictures of an image's tiles together.

    Args:
        tiles: of one image, not overlapping.
        pictures: one [S, S, 3] for each tile, all of one dtype.

    Returns:
        [H, W, 3]: the smallest rectangle around all tiles; what no tile covers is 0.
    """
    top, left = min(t.y for t in tiles), min(t.x for t in tiles)
    height = max(t.y + p.shape[0] for t, p in zip(tiles, pictures, strict=True)) - top
    width = max(t.x + p.shape[1] for t, p in zip(tiles, pictures, strict=True)) - left
    whole = np.zeros((height, width, 3), pictures[0].dtype)
    for tile, picture in zip(tiles, pictures, strict=True):
        y, x = tile.y - top, tile.x - left
        whole[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return whole


def _training_index(number: int, dataset: DatasetStores) -> np.ndarray:
    """int64 [samples, 3]: (dataset, patch, variant) of every training sample of one dataset."""
    patches = np.flatnonzero(dataset.patches.split == TRAIN)
    variants = dataset.pairs.variants
    index = np.empty((len(patches) * variants, 3), np.int64)
    index[:, 0] = number
    index[:, 1] = np.repeat(patches, variants)
    index[:, 2] = np.tile(np.arange(variants), len(patches))
    return index


def _lr(pairs: PairReader, patch: int, variant: int) -> tuple[np.ndarray]:
    return (pairs.lr(patch, variant),)


def _sr(cache: CacheReader, patch: int, variant: int) -> tuple[np.ndarray]:
    return (cache.sr_stored(patch, variant),)


def _demand_features(dataset: DatasetStores, name: str) -> None:
    if name not in dataset.caches:
        raise ValueError(
            f"features of {name} are asked for, but dataset {dataset.name} has "
            f"caches of {sorted(dataset.caches)} only"
        )
    if dataset.caches[name].feature_shape is None:
        raise ValueError(
            f"expert {name} has no features in its cache of {dataset.name}: "
            f"set experts.{name}.features and build again"
        )
