"""The patch store `patches.zarr`: high-resolution patches and where in which image each one lies.

Choosing and decoding the patches is silver's work (`sr_assets/assets/silver.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from zarr.codecs import ZstdCodec

from sr_assets.output_folder import OutputFolder
from sr_assets.storage import Output
from sr_assets.stores.codecs import PictureDelta
from sr_assets.stores.schema import schema_entry
from sr_assets.stores.shards import ArraySpec, GroupReader, ShardWriter

GROUP = "patches.zarr"
SCHEMA = "srd.patches"
VERSION = 1
TRAIN, VALIDATION = 0, 1
_SHARD_BYTES = 96 << 20  # of pixels: 512 patches of 256 px, a million in 1,954 files
_SHARD_SAMPLES = 4096


@dataclass(frozen=True)
class PatchPositions:
    """Where the N patches come from.

    Args:
        image: int32 [N], index into the list of images.
        y, x: int32 [N], upper left corner in that image (px).
        split: uint8 [N], TRAIN or VALIDATION.
    """

    image: np.ndarray
    y: np.ndarray
    x: np.ndarray
    split: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


class PatchWriter:
    """Writes a patch store, shard by shard; `shards[i]` are the patches of shard i.

    Args:
        folder: where to write.
        positions: of all N patches, in the order of the store.
        size: side of a patch S (px).
        images: relative paths of the source images.
        provenance: what the store was made from (JSON values).
    """

    def __init__(
        self,
        folder: OutputFolder,
        positions: PatchPositions,
        size: int,
        images: Sequence[str],
        provenance: Mapping[str, Any],
    ) -> None:
        self._writer = ShardWriter(
            folder,
            GROUP,
            len(positions),
            {
                "hr": ArraySpec(
                    shape=(size, size, 3),
                    chunk=(size, size, 3),
                    dtype="uint8",
                    axes=("patch", "y", "x", "channel"),
                    filters=(
                        PictureDelta(subtract_green=True, channel_axis=-1, predictor="left_above"),
                    ),
                    compressors=(ZstdCodec(level=1),),
                )
            },
            max(1, min(_SHARD_SAMPLES, _SHARD_BYTES // (3 * size * size))),
            {
                "schema": schema_entry(SCHEMA, VERSION),
                "patch_size": size,
                "images": list(images),
                "provenance": dict(provenance),
            },
            columns={
                "image": np.asarray(positions.image, np.int32),
                "y": np.asarray(positions.y, np.int32),
                "x": np.asarray(positions.x, np.int32),
                "split": np.asarray(positions.split, np.uint8),
            },
        )
        self.shards = self._writer.shards

    def finished(self, shard: int) -> bool:
        """Whether shard `shard` was written whole, in this run or an earlier one."""
        return self._writer.finished(shard)

    def write(self, shard: int, hr: np.ndarray) -> None:
        """Writes the patches `shards[shard]`, uint8 [n, S, S, 3]."""
        self._writer.write(shard, hr=hr)


class PatchReader:
    """Reads a patch store; safe to share by threads and to hand to worker processes.

    Attributes:
        size: side of a patch S (px).
        images: relative paths of the source images.
    """

    def __init__(self, output: Output) -> None:
        self._group = GroupReader(output.path / GROUP, SCHEMA, VERSION)
        self.size: int = self._group.attributes["patch_size"]
        self.images: list[str] = self._group.attributes["images"]
        self._count: int = self._group.array("hr").shape[0]

    @cached_property
    def image(self) -> np.ndarray:
        """int32 [N], index into `images`."""
        return self._group.read("image", slice(None))

    @cached_property
    def y(self) -> np.ndarray:
        """int32 [N], upper edge in the image (px)."""
        return self._group.read("y", slice(None))

    @cached_property
    def x(self) -> np.ndarray:
        """int32 [N], left edge in the image (px)."""
        return self._group.read("x", slice(None))

    @cached_property
    def split(self) -> np.ndarray:
        """uint8 [N], TRAIN or VALIDATION."""
        return self._group.read("split", slice(None))

    def __len__(self) -> int:
        return self._count

    def hr(self, index: int) -> np.ndarray:
        """Patch `index`, uint8 [S, S, 3].

        Raises:
            IndexError: there is no such patch.
            DamagedStoreError: its checksum differs.
        """
        return self._group.read("hr", index)

    def hr_batch(
        self, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """B patches, uint8 [B, S, S, 3]; into `out` where it is given.

        Raises:
            IndexError, DamagedStoreError: as for `hr`.
        """
        return self._group.read_batch("hr", indices, out=out)
