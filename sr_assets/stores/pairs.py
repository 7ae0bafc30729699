"""The pair store `pairs.zarr`: K degraded versions of every patch, and the table of what was done.

The patches themselves stay in the patch store, at the same index.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from zarr.codecs import ZstdCodec

from sr_assets.output_folder import OutputFolder
from sr_assets.storage import Output
from sr_assets.stores.codecs import PictureDelta
from sr_assets.stores.schema import schema_entry
from sr_assets.stores.shard_coding import ShardCoder
from sr_assets.stores.shards import ArraySpec, GroupReader, ShardWriter

GROUP = "pairs.zarr"
SCHEMA = "srd.pairs"
VERSION = 1
PARAMS = "params.parquet"
_SHARD_BYTES = 16 << 20
_SHARD_SAMPLES = 1024


@dataclass(frozen=True)
class AppliedStep:
    """One step of what was done to a sample."""

    op: str
    """What kind of step: resize, blur, noise, jpeg ..."""
    kind: str
    """Which of its kind: a kernel, a method, a chroma subsampling ..."""
    numbers: Mapping[str, float]
    """Its parameters by name."""
    position: int = 0
    """Its number in the process, as the recipe writes it."""


SampleSteps = tuple[AppliedStep, ...]

_PARAMS = pa.schema(
    [
        pa.field("index", pa.int32(), nullable=False),
        pa.field("variant", pa.int16(), nullable=False),
        pa.field("degradation", pa.string(), nullable=False),
        pa.field(
            "steps",
            pa.list_(
                pa.struct(
                    [
                        pa.field("op", pa.string()),
                        pa.field("kind", pa.string()),
                        pa.field("position", pa.int16()),
                        pa.field("numbers", pa.map_(pa.string(), pa.float64())),
                    ]
                )
            ),
        ),
    ]
)


def params_table(degradation: str, samples: Sequence[Sequence[SampleSteps]]) -> pa.Table:
    """The table of what was done: one row for each (index, variant), in that order.

    Args:
        degradation: name of the preset, or composed.
        samples: for each patch, for each variant, the steps in the order in which they were done.
    """
    rows = [
        {
            "index": index,
            "variant": variant,
            "degradation": degradation,
            "steps": [
                {
                    "op": step.op,
                    "kind": step.kind,
                    "position": step.position,
                    "numbers": [(k, float(v)) for k, v in step.numbers.items()],
                }
                for step in steps
            ],
        }
        for index, variants in enumerate(samples)
        for variant, steps in enumerate(variants)
    ]
    return pa.Table.from_pylist(rows, schema=_PARAMS)


@dataclass(frozen=True)
class PairCoder:
    """Makes the files of shards of a pair store; may be handed to another process."""

    coder: ShardCoder

    @property
    def shards(self) -> tuple[range, ...]:
        """The samples of each shard."""
        return self.coder.shards

    def encode(self, shard: int, lr: np.ndarray) -> dict[str, bytes]:
        """The samples of one shard, uint8 [n, K, s, s, 3], as files."""
        return self.coder.encode(shard, lr=lr)


class PairWriter:
    """Writes a pair store, shard by shard; `shards[i]` are the samples of shard i.

    Args:
        folder: where to write.
        count: number of patches N.
        variants: degraded versions of each, K.
        size: side of an LR patch s (px).
        provenance: what the store was made from (JSON values).
    """

    def __init__(
        self,
        folder: OutputFolder,
        count: int,
        variants: int,
        size: int,
        provenance: Mapping[str, Any],
    ) -> None:
        self._folder = folder
        self._writer = ShardWriter(
            folder,
            GROUP,
            count,
            {
                "lr": ArraySpec(
                    shape=(variants, size, size, 3),
                    chunk=(1, size, size, 3),
                    dtype="uint8",
                    axes=("patch", "variant", "y", "x", "channel"),
                    filters=(
                        PictureDelta(subtract_green=True, channel_axis=-1, predictor="left_above"),
                    ),
                    compressors=(ZstdCodec(level=1),),
                )
            },
            max(1, min(_SHARD_SAMPLES, _SHARD_BYTES // (3 * size * size * variants))),
            {
                "schema": schema_entry(SCHEMA, VERSION),
                "size": size,
                "variants": variants,
                "provenance": dict(provenance),
            },
        )
        self.shards = self._writer.shards
        self.coder = PairCoder(self._writer.coder)

    def finished(self, shard: int) -> bool:
        """Whether shard `shard` was written whole, in this run or an earlier one."""
        return self._writer.finished(shard)

    def write(self, shard: int, lr: np.ndarray) -> None:
        """Writes the samples `shards[shard]`, uint8 [n, K, s, s, 3]."""
        self.put(self.coder.encode(shard, lr))

    def put(self, files: Mapping[str, bytes]) -> None:
        """Writes what `coder` made of one shard, here or in another process."""
        self._writer.put(files)

    def write_params(self, table: pa.Table) -> None:
        """Writes what was done to each sample, one row for each (index, variant)."""
        sink = io.BytesIO()
        pq.write_table(
            table.replace_schema_metadata(None), sink, compression="zstd", store_schema=False
        )
        self._folder.write_bytes(PARAMS, sink.getvalue())


class PairReader:
    """Reads a pair store; safe to share by threads and to hand to worker processes.

    Attributes:
        size: side of an LR patch s (px).
        variants: degraded versions of each patch, K.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._group = GroupReader(output.path / GROUP, SCHEMA, VERSION)
        self.size: int = self._group.attributes["size"]
        self.variants: int = self._group.attributes["variants"]
        self._count: int = self._group.array("lr").shape[0]

    def __len__(self) -> int:
        return self._count

    def lr(self, index: int, variant: int) -> np.ndarray:
        """Variant `variant` of patch `index`, uint8 [s, s, 3].

        Raises:
            IndexError: there is no such sample.
            DamagedStoreError: its checksum differs.
        """
        return self._group.read("lr", index, variant)

    def lr_batch(
        self,
        indices: Sequence[int] | np.ndarray,
        variants: Sequence[int] | np.ndarray,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """B samples (indices[i], variants[i]), uint8 [B, s, s, 3]; into `out` where it is given.

        Raises:
            IndexError, DamagedStoreError: as for `lr`.
        """
        return self._group.read_batch("lr", indices, variants, out=out)

    def params(self) -> pa.Table:
        """What was done to each sample, one row for each (index, variant)."""
        return pq.read_table(io.BytesIO(self._output.read_bytes(PARAMS)))

    def steps(self, wanted: np.ndarray | None = None) -> Iterator[tuple[int, int, SampleSteps]]:
        """(index, variant, steps) of every sample, or of the patches for which bool [N] is set."""
        table = self.params()
        if wanted is not None:
            table = table.filter(pa.array(wanted[table.column("index").to_numpy()]))
        for row in table.to_pylist():
            steps = tuple(
                AppliedStep(s["op"], s["kind"], dict(s["numbers"]), s["position"])
                for s in row["steps"]
            )
            yield row["index"], row["variant"], steps
