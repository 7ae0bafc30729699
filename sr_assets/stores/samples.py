"""What training reads: batches of random crops of several datasets, in the integers of the stores.

Every crop is a pure function of (seed, number), so a resumed run sees what an undisturbed one does;
the order is `sample_order.py`, the draws are `augment.py`, whole held-out images `held_out.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sr_assets.recipe.training import Augment
from sr_assets.stores.augment import Cuts, changed, draw_cuts, draw_partner
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.held_out import HeldOutImage, held_out_images
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import TRAIN, VALIDATION, PatchReader
from sr_assets.stores.sample_order import Places, SampleOrder

#: HR patch, uint8 [S, S, 3], and the name of one look at it -> another LR, uint8 [s, s, 3].
Fresh = Callable[[np.ndarray, str], np.ndarray]
#: Shape and type of an array of a batch -> memory for it, such as page-locked memory.
Empty = Callable[[tuple[int, ...], np.dtype], np.ndarray]
Maps = dict[str, np.ndarray]

_SCALE = "scale/"  # as sr_models/training/stored.py knows it


class NoSamplesError(ValueError):
    """There is nothing to train or to validate on."""


@dataclass(frozen=True)
class DatasetStores:
    """The stores of one dataset, opened: patches, their LR, and the cached SR of some networks."""

    name: str
    patches: PatchReader
    pairs: PairReader
    caches: Mapping[str, CacheReader] = field(default_factory=dict)


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
            _demand_alike(dataset, self.datasets[0])
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
        splits = [dataset.patches.split for dataset in self.datasets]
        self._order = SampleOrder(
            [np.flatnonzero(split == TRAIN) for split in splits],
            [dataset.pairs.variants for dataset in self.datasets],
        )
        if not len(self._order):
            raise NoSamplesError(f"no patch of {self._named()} is in the training split")
        if not any((split == VALIDATION).any() for split in splits):
            raise NoSamplesError(f"no patch of {self._named()} is in the validation split")
        self._spare = threading.local()

    def __len__(self) -> int:
        """Samples in one epoch."""
        return len(self._order)

    def batch(self, number: int, size: int, crop: int, seed: int, empty: Empty = np.empty) -> Maps:
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
            empty: where the arrays of the batch lie.

        Returns:
            "lr" uint8 [size, 3, crop, crop]; "hr" uint8 and one "sr/<name>" for each cached
            network, [size, 3, crop * scale, crop * scale]; one "features/<name>"
            [size, C, crop, crop] for each that is asked for. SR and features are as stored,
            integers with the float32 array "scale/<map>", [size, 1] or [size, C], beside them, or
            float32 without: see `sr_models/training/stored.py`. With photometric augmentation "lr"
            and "hr" are float32, a little outside [0, 1].

        Raises:
            ValueError: `crop` is larger than what the margin leaves of an LR patch.
        """
        positions = np.arange(number * size, (number + 1) * size)
        if self.augment.photometric:
            pairs = self._changed(positions, crop, seed)
            return {
                key: np.stack([pair[side] for pair in pairs])
                for side, key in enumerate(("lr", "hr"))
            }
        batch: Maps = {}
        for slots, maps, cuts in self._read(positions, crop, seed):
            side = maps["lr"].shape[-1]
            for key, values in maps.items():
                scale = key.startswith(_SCALE)
                factor = 1 if scale else values.shape[-1] // side
                shape = values.shape[1:] if scale else (values.shape[1], *(crop * factor,) * 2)
                if key not in batch:
                    batch[key] = empty((size, *shape), values.dtype)
                if scale:
                    batch[key][slots] = values
                    continue
                for row, slot in enumerate(slots.tolist()):
                    cuts.into(row, values[row], factor, batch[key][slot])
        return batch

    def sample(self, position: int, seed: int) -> tuple[int, int, int]:
        """(dataset, patch, variant) at `position` of the endless run."""
        at = self._order.at(np.array([position]), seed)
        return int(at.dataset[0]), int(at.patch[0]), int(at.variant[0])

    def validation_images(self) -> Iterator[HeldOutImage]:
        """The held-out images of all datasets, one after the other."""
        for number, dataset in enumerate(self.datasets):
            yield from held_out_images(number, dataset.name, dataset.patches)

    def held_out(self, image: HeldOutImage, patches: slice) -> Maps:
        """Some patches of a held-out image with the first variant of their LR, whole.

        Returns:
            As `batch`, but for the size: no crops.
        """
        indices = image.patches[patches]
        return self._stored(image.dataset, indices, np.zeros_like(indices), {}, None)

    def _named(self) -> str:
        return ", ".join(dataset.name for dataset in self.datasets)

    def _read(
        self, positions: np.ndarray, crop: int, seed: int
    ) -> Iterator[tuple[np.ndarray, Maps, Cuts]]:
        """For each dataset: which of the positions are its own, their whole maps, and the cuts."""
        places = self._order.at(positions, seed)
        for number in np.unique(places.dataset):
            slots = np.flatnonzero(places.dataset == number)
            looks = self._looks(places, slots, positions, seed) if self._fresh else None
            patches, variants = places.patch[slots], places.variant[slots]
            maps = self._stored(number, patches, variants, self._spare.__dict__, looks)
            side = maps["lr"].shape[-1]
            yield slots, maps, draw_cuts(self.augment, side, crop, seed, positions[slots])

    def _looks(
        self, places: Places, slots: np.ndarray, positions: np.ndarray, seed: int
    ) -> list[str]:
        epochs, rows = positions // len(self), slots.tolist()
        return [
            f"{seed}:{epochs[row]}:{self.datasets[places.dataset[row]].name}:"
            f"{places.patch[row]}:{places.variant[row]}"
            for row in rows
        ]

    def _changed(
        self, positions: np.ndarray, crop: int, seed: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """LR and HR of each position after every photometric augmentation, float32."""
        from sr_models.training.augment import mixup

        told = positions.tolist()
        drawn = {p: draw_partner(self.augment, len(self), seed, p) for p in told}
        wanted = np.array([*told, *(partner[0] for partner in drawn.values() if partner)])
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for slots, maps, cuts in self._read(wanted, crop, seed):
            for row, position in enumerate(wanted[slots].tolist()):
                lr, hr = (
                    _cut(maps[key][row], cuts, row, factor).astype(np.float32) / np.float32(255)
                    for key, factor in (("lr", 1), ("hr", self.scale))
                )
                found[position] = changed(self.augment, lr, hr, self.scale, crop, seed, position)
        return [
            mixup(found[position], found[partner[0]], partner[1]) if partner else found[position]
            for position, partner in drawn.items()
        ]

    def _stored(
        self,
        number: int,
        patches: np.ndarray,
        variants: np.ndarray,
        spare: dict[str, np.ndarray],
        looks: list[str] | None,
    ) -> Maps:
        """All maps of some samples of one dataset, read into `spare` memory where there is any.

        Args:
            number: of the dataset.
            patches, variants: int64 [B].
            spare: arrays of earlier calls by name, which are overwritten.
            looks: name of each look, for LR that is made anew.
        """
        dataset, count = self.datasets[number], len(patches)

        def room(key: str) -> np.ndarray | None:
            kept = spare.get(f"{number}/{key}")
            return None if kept is None or len(kept) < count else kept[:count]

        def keep(key: str, read: np.ndarray) -> np.ndarray:
            if room(key) is None:
                spare[f"{number}/{key}"] = read
            return read

        hr = keep("hr", dataset.patches.hr_batch(patches, room("hr")))
        if self._fresh and looks is not None:
            lr = np.stack([self._fresh(one, look) for one, look in zip(hr, looks, strict=True)])
        else:
            lr = keep("lr", dataset.pairs.lr_batch(patches, variants, room("lr")))
        maps = {"lr": lr.transpose(0, 3, 1, 2), "hr": hr.transpose(0, 3, 1, 2)}
        for name, cache in dataset.caches.items():
            key = f"sr/{name}"
            maps[key] = keep(key, cache.sr_stored_batch(patches, variants, room(key)))
            if cache.sr_step is not None:
                maps[_SCALE + key] = np.full((count, 1), cache.sr_step, np.float32)
        for name in self.features:
            key, cache = f"features/{name}", dataset.caches[name]
            values, scale = cache.features_stored_batch(patches, variants, room(key))
            maps[key] = keep(key, values)
            if scale is not None:
                maps[_SCALE + key] = scale
        return maps


def _cut(picture: np.ndarray, cuts: Cuts, row: int, factor: int) -> np.ndarray:
    side = int(cuts.side[row]) * factor
    out = np.empty((len(picture), side, side), picture.dtype)
    cuts.into(row, picture, factor, out)
    return out


def _demand_alike(dataset: DatasetStores, first: DatasetStores) -> None:
    if set(dataset.caches) != set(first.caches):
        raise ValueError(
            f"dataset {dataset.name} has caches of {sorted(dataset.caches)}, "
            f"{first.name} of {sorted(first.caches)}"
        )
    for name, cache in dataset.caches.items():
        if cache.sr_step != first.caches[name].sr_step:
            raise ValueError(
                f"the caches of {name} for {dataset.name} and {first.name} have different presets: "
                "build both again"
            )


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
