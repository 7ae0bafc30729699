"""What training reads: random crops of several datasets, and whole held-out images.

Every crop is a pure function of (seed, number), so a resumed run sees what an undisturbed one does;
the stores themselves are `patches.py`, `pairs.py` and `expert_cache.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from sr_assets.stores.expert_cache import CacheReader, dequantise
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import TRAIN, VALIDATION, PatchReader

#: First words of the keys of the two random streams, so that they never share numbers.
_ORDER, _CROP = 0, 1
#: Bytes of patches that stay in memory as they were read. The first that come stay: an epoch visits
#: every patch once, so dropping the oldest would drop each just before its turn.
_KEPT_BYTES = 512 << 20


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


class TrainingSamples:
    """The samples of several datasets: (dataset, patch, variant) of the training split.

    Args:
        datasets: opened stores; every one has the caches of the same networks.
        scale: upscaling factor.

    Raises:
        ValueError: no dataset, no patch to train or to validate on in any, or caches that differ
            between datasets.
    """

    def __init__(self, datasets: Sequence[DatasetStores], scale: int) -> None:
        self.datasets = tuple(datasets)
        self.scale = scale
        if not self.datasets:
            raise ValueError("training needs at least one dataset")
        self.names = tuple(self.datasets[0].caches)
        for dataset in self.datasets:
            if set(dataset.caches) != set(self.names):
                raise ValueError(
                    f"dataset {dataset.name} has caches of {sorted(dataset.caches)}, "
                    f"{self.datasets[0].name} of {sorted(self.names)}"
                )
        self._index = np.concatenate([_training_index(i, d) for i, d in enumerate(self.datasets)])
        if not len(self._index):
            raise ValueError(f"no patch of {self._named()} is in the training split")
        if not any((dataset.patches.split == VALIDATION).any() for dataset in self.datasets):
            raise ValueError(f"no patch of {self._named()} is in the validation split")
        self._order: tuple[tuple[int, int], np.ndarray] | None = None
        self._kept: dict[tuple[int, str, int, int], np.ndarray] = {}
        self._room = _KEPT_BYTES

    def __len__(self) -> int:
        """Samples in one epoch."""
        return len(self._index)

    def batch(self, number: int, size: int, crop: int, seed: int) -> dict[str, np.ndarray]:
        """Batch `number` of an endless run; the same arguments give the same arrays.

        Samples come in a new random order each epoch; the batch that ends an epoch goes on into the
        next. Crops lie on the LR grid, and one of the eight flips and rotations is applied to all
        pictures of a sample alike.

        Args:
            number: from 0.
            size: samples in the batch.
            crop: side of the LR crop, at most that of an LR patch.
            seed: of the order, the crops and the flips.

        Returns:
            "lr" float32 [size, 3, crop, crop] in [0, 1]; "hr" and one "sr/<name>" for each cached
            network, float32 [size, 3, crop * scale, crop * scale]; SR is not clamped.

        Raises:
            ValueError: `crop` is larger than an LR patch.
        """
        keys = ("lr", "hr", *(f"sr/{name}" for name in self.names))
        sides = {key: crop if key == "lr" else crop * self.scale for key in keys}
        batch = {k: np.empty((size, 3, side, side), np.float32) for k, side in sides.items()}
        for slot in range(size):
            for key, picture in self._sample(number * size + slot, crop, seed).items():
                batch[key][slot] = picture
        return batch

    def sample(self, position: int, seed: int) -> tuple[int, int, int]:
        """(dataset, patch, variant) at `position` of the endless run."""
        epoch, offset = divmod(position, len(self._index))
        if self._order is None or self._order[0] != (seed, epoch):
            self._order = (seed, epoch), _generator(seed, _ORDER, epoch).permutation(len(self))
        dataset, patch, variant = self._index[self._order[1][offset]]
        return int(dataset), int(patch), int(variant)

    def _named(self) -> str:
        return ", ".join(dataset.name for dataset in self.datasets)

    def _sample(self, position: int, crop: int, seed: int) -> dict[str, np.ndarray]:
        number, patch, variant = self.sample(position, seed)
        stored = self._stored(number, patch, variant)
        room = stored["lr"].shape[-1] - crop
        if room < 0:
            raise ValueError(f"a crop of {crop} does not fit in an LR patch of {room + crop}")
        draw = _generator(seed, _CROP, position)
        y, x = (int(v) for v in draw.integers(0, room + 1, 2))
        turns, mirrored = int(draw.integers(4)), bool(draw.integers(2))
        found = {}
        for key, picture in stored.items():
            factor = 1 if key == "lr" else self.scale
            rows = slice(y * factor, (y + crop) * factor)
            columns = slice(x * factor, (x + crop) * factor)
            found[key] = _floating(_oriented(picture[:, rows, columns], turns, mirrored))
        return found

    def _stored(self, number: int, patch: int, variant: int) -> dict[str, np.ndarray]:
        """All pictures of one sample, planar, in the integers of their stores."""
        dataset = self.datasets[number]

        def keep(key: str, read: Callable[[], np.ndarray], k: int = variant) -> np.ndarray:
            where = (number, key, patch, k)
            if where in self._kept:
                return self._kept[where]
            picture = read()
            if picture.nbytes <= self._room:
                self._room -= picture.nbytes
                self._kept[where] = picture
            return picture

        found = {
            "lr": _planar(keep("lr", partial(dataset.pairs.lr, patch, variant))),
            "hr": _planar(keep("hr", partial(dataset.patches.hr, patch), 0)),
        }
        for name, cache in dataset.caches.items():
            found[f"sr/{name}"] = keep(f"sr/{name}", partial(cache.sr_stored, patch, variant))
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
        return Tile(
            y=int(patches.y[n]),
            x=int(patches.x[n]),
            hr=stored["hr"].transpose(1, 2, 0),
            lr=_floating(stored["lr"]),
            sr={name: _floating(stored[f"sr/{name}"]) for name in self.names},
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


def _generator(seed: int, stream: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream, number))))


def _planar(picture: np.ndarray) -> np.ndarray:
    return picture.transpose(2, 0, 1)


def _floating(stored: np.ndarray) -> np.ndarray:
    """uint8 pictures to [0, 1], fixed-point SR to what it stands for; float32."""
    if stored.dtype == np.uint8:
        return stored.astype(np.float32) / np.float32(255)
    return dequantise(stored)


def _oriented(picture: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    """One of the eight orientations of a [3, H, W] picture."""
    turned = np.rot90(picture, turns, (-2, -1))
    return turned[..., ::-1] if mirrored else turned
