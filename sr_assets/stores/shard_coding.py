"""What the files of one shard are: from arrays to bytes, in any process.

Writing them is `shards.py`; where chunks lie in a file is `shard_bytes.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from sr_assets.stores.chunk_bytes import ChunkBytes
from sr_assets.stores.shard_bytes import shard_bytes


@dataclass(frozen=True)
class ArrayCoder:
    """How the samples of one array become the file of a shard."""

    shape: tuple[int, ...]
    """Of one sample."""
    dtype: str
    chunks: int
    """Of a whole shard; the last one may hold fewer."""
    chunk: ChunkBytes


@dataclass(frozen=True)
class ShardCoder:
    """Makes the files of the shards of one group; `shards[i]` are the samples of shard i."""

    shards: tuple[range, ...]
    arrays: Mapping[str, ArrayCoder]

    def keys(self, shard: int) -> dict[str, str]:
        """Array -> its file for one shard, in the group."""
        return {n: f"{n}/c/{shard}" + "/0" * len(a.shape) for n, a in self.arrays.items()}

    def encode(self, shard: int, **arrays: np.ndarray) -> dict[str, bytes]:
        """File in the group -> its content; chunks are coded on several threads.

        Args:
            shard: index into `shards`.
            arrays: by name, [len(shards[shard]), *shape] of exactly the specified type.

        Raises:
            ValueError: an array is missing, unknown or of another shape or type.
        """
        if arrays.keys() != self.arrays.keys():
            raise ValueError(
                f"shard {shard} needs {sorted(self.arrays)}, was given {sorted(arrays)}"
            )
        for name, coder in self.arrays.items():
            values, shape = arrays[name], (len(self.shards[shard]), *coder.shape)
            if values.shape != shape or values.dtype != np.dtype(coder.dtype):
                raise ValueError(
                    f"{name} of shard {shard} is {values.dtype} {values.shape}, "
                    f"expected {coder.dtype} {shape}"
                )
        keys, files = self.keys(shard), {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, coder in self.arrays.items():
                chunks = arrays[name].reshape(-1, *coder.chunk.shape)
                coded = list(pool.map(coder.chunk.encode, chunks))
                files[keys[name]] = shard_bytes(coded, coder.chunks)
        return files
