"""SR and features of whole images of an output, one array each: `images.zarr`, `features.zarr`.

They are stored as the patches of an expert cache are (`expert_cache.py`), in integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.common import JSON
from zarr.storage import MemoryStore

from sr_assets.output_folder import OutputFolder
from sr_assets.storage import Output
from sr_assets.stores.fixed_point import (
    PRESETS,
    SR_STEP,
    dequantise,
    dequantise_features,
    quantise,
    quantise_features,
)
from sr_assets.stores.shards import GroupReader

IMAGES = "images.zarr"
FEATURES = "features.zarr"
_METADATA = "zarr.json"
_TILE = 512  # side of a chunk (px)


def image_files(name: str, sr: np.ndarray) -> dict[str, bytes]:
    """The files of the SR of one whole image, array `name` of the group `images.zarr`.

    They are made in any process and written by `put_files`.

    Args:
        name: of the image, unique in the output; slashes make folders.
        sr: float32 [3, H, W], not clamped.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(sr).all():
        raise ValueError(f"the SR of image {name} holds a value that is not finite")
    tile = tuple(max(1, min(_TILE, side)) for side in sr.shape[1:])
    return _files(
        IMAGES,
        {"sr_step": SR_STEP},
        quantise(sr),
        name=name,
        chunks=(3, *tile),
        shards=(3, *(math.ceil(side / t) * t for side, t in zip(sr.shape[1:], tile, strict=True))),
        filters=PRESETS["default"].sr_filters(),
        compressors=(*PRESETS["default"].sr, Crc32cCodec()),
        dimension_names=("channel", "y", "x"),
    )


def feature_files(name: str, features: np.ndarray) -> dict[str, bytes]:
    """The files of the features of one whole image, array `name` of the group `features.zarr`.

    Args:
        name: of the image, unique in the output; slashes make folders.
        features: float32 [C, h, w].

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(features).all():
        raise ValueError(f"the features of image {name} hold a value that is not finite")
    stored, scale = quantise_features(features)
    return _files(
        FEATURES,
        {},
        stored,
        name=name,
        chunks=(1, *stored.shape[1:]),
        shards=stored.shape,
        compressors=(
            BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=1),
            Crc32cCodec(),
        ),
        dimension_names=("feature", "y", "x"),
        attributes={"scale": scale.tolist()},
    )


def put_files(folder: OutputFolder, files: Mapping[str, bytes]) -> None:
    """Writes what `image_files` or `feature_files` made; their group once."""
    for name, data in files.items():
        group = name in (f"{IMAGES}/{_METADATA}", f"{FEATURES}/{_METADATA}")
        if not (group and folder.finished(name)):
            folder.write_bytes(name, data, content=not group)


def read_image(output: Output, name: str) -> np.ndarray:
    """SR of one whole image, float32 [3, H, W].

    Raises:
        DamagedStoreError: there is no such image, or a checksum differs.
    """
    return dequantise(GroupReader(output.path / IMAGES).read(name, slice(None)))


def read_features(output: Output, name: str) -> np.ndarray:
    """Features of one whole image, float32 [C, h, w].

    Raises:
        DamagedStoreError: there is no such image, or a checksum differs.
    """
    group = GroupReader(output.path / FEATURES)
    scale = np.asarray(group.array(name).attrs["scale"], np.float32)
    return dequantise_features(group.read(name, slice(None)), scale)


def _files(
    group: str, described: dict[str, JSON], values: np.ndarray, name: str, **array: Any
) -> dict[str, bytes]:
    """File in the output -> content, of a group with one array, and of the groups between."""
    found: dict[str, Any] = {}
    store = MemoryStore(found)
    zarr.create_group(store, attributes=described)
    made = zarr.create_array(
        store, name=name, shape=values.shape, dtype=values.dtype, fill_value=0,
        config={"write_empty_chunks": True}, **array,
    )  # fmt: skip
    made[:] = values
    return {f"{group}/{key}": data.to_bytes() for key, data in found.items()}
