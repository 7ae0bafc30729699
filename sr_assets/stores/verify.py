"""Reads a whole output again and says what is not as it was written.

It repairs nothing: a damaged output is deleted by a person and built again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import zarr

from sr_assets.output_folder import LEFTOVERS
from sr_assets.storage import MARKER, Output, is_local
from sr_assets.stores.hashing import reader_store

Recompute = Callable[[Sequence[int]], Iterable[str]]


@dataclass(frozen=True)
class Share:
    """How many of the entries of an output to make again: a number of them, or a percentage."""

    amount: float
    percent: bool = False

    def of(self, count: int) -> list[int]:
        """Which of `count` entries: as many as asked for, rounded up, spread evenly."""
        wanted = math.ceil(count * self.amount / 100) if self.percent else int(self.amount)
        wanted = min(wanted, count)
        return [i * count // wanted for i in range(wanted)]


def parse_share(text: str) -> Share:
    """`8` is eight entries of each output, `1%` one of a hundred.

    Raises:
        ValueError: it is neither a whole number from 0 nor a percentage from 0 to 100.
    """
    number = text.strip().removesuffix("%")
    percent = number != text.strip()
    try:
        amount = float(number) if percent else int(number)
    except ValueError:
        amount = -1
    if not 0 <= amount <= (100 if percent else math.inf):
        raise ValueError(f"{text!r} is neither a count such as 8 nor a percentage such as 1%")
    return Share(amount, percent)


def verify_output(
    output: Output,
    recompute: Recompute | None = None,
    share: Share = Share(0),
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Compares an output with its marker and every chunk with its checksum.

    Args:
        output: what to verify; it need not be whole.
        recompute: makes the entries of the given indices again and yields a line for each that
            differs; None when the output cannot be made again.
        share: how many of its entries to make again, spread evenly over the output.
        progress: told the bytes of each file once it is verified; they add up to `output_bytes`.

    Returns:
        One line for each difference, naming the file; empty when all is well.
    """
    differences: list[str] = []
    chunks: dict[str, _Shard] = {}
    count = 0
    for array, found in _arrays(output, differences):
        chunks.update(found)
        if array.ndim > 1:
            count = max(count, array.shape[0])
    for name, entry in output.marker["files"].items():
        differences.extend(_compare_file(output, name, entry))
        if name in chunks:
            differences.extend(chunks.pop(name).damage())
        if progress:
            progress(entry["size"])
    differences += [f"{name}: no such file, though its array needs it" for name in chunks]
    differences.extend(_strangers(output))
    if recompute and (indices := share.of(count)):
        differences.extend(recompute(indices))
    return differences


def output_bytes(output: Output) -> int:
    """Size of all files of an output, which `verify_output` reads."""
    return sum(entry["size"] for entry in output.marker["files"].values())


@dataclass(frozen=True)
class _Shard:
    """One stored file of an array and the part of the array that it holds."""

    array: zarr.Array
    name: str
    region: tuple[slice, ...]

    def damage(self) -> Iterator[str]:
        """Decodes the file; when that fails, says which of its samples cannot be read."""
        if self._readable(self.region):
            return
        first, *rest = self.region
        starts = range(first.start, first.stop, self.array.chunks[0])
        damaged = [
            start
            for start in starts
            if not self._readable((slice(start, min(start + starts.step, first.stop)), *rest))
        ]
        if len(damaged) == len(starts):
            yield f"{self.name}: nothing in it can be read (checksum)"
        else:
            yield from (f"{self.name}: sample {start} is damaged (checksum)" for start in damaged)

    def _readable(self, region: tuple[slice, ...]) -> bool:
        try:
            self.array[region]
        except (ValueError, RuntimeError, OSError):
            return False
        return True


def _arrays(
    output: Output, differences: list[str]
) -> Iterator[tuple[zarr.Array, dict[str, _Shard]]]:
    for name in output.marker["files"]:
        folder, _, last = name.rpartition("/")
        if last != "zarr.json":
            continue
        try:
            if json.loads(output.read_bytes(name))["node_type"] != "array":
                continue
            array = zarr.open_array(reader_store(output.path / folder), mode="r")
        except (ValueError, KeyError, TypeError, OSError) as error:
            differences.append(f"{name}: cannot be read ({str(error).splitlines()[0]})")
            continue
        yield array, {shard.name: shard for shard in _shards(array, folder)}


def _shards(array: zarr.Array, folder: str) -> Iterator[_Shard]:
    steps = array.shards or array.chunks
    starts = [range(0, length, step) for length, step in zip(array.shape, steps, strict=True)]
    for corner in itertools.product(*starts):
        place = "/".join(str(at // step) for at, step in zip(corner, steps, strict=True))
        region = tuple(
            slice(at, min(at + step, length))
            for at, step, length in zip(corner, steps, array.shape, strict=True)
        )
        yield _Shard(array, f"{folder}/c/{place}", region)


def _compare_file(output: Output, name: str, entry: dict[str, object]) -> Iterator[str]:
    digest, size = hashlib.sha256(), 0
    try:
        with (output.path / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    except OSError as error:
        yield f"{name}: cannot be read ({error})"
        return
    if size != entry["size"]:
        yield f"{name}: has {size} bytes, was written with {entry['size']}"
    elif digest.hexdigest() != entry["sha256"]:
        yield f"{name}: content differs from what was written (sha256)"


def _strangers(output: Output) -> Iterator[str]:
    if not is_local(output.path):
        return
    known = {MARKER, *output.marker["files"]}
    for path in sorted(output.path.rglob("*")):
        name = path.relative_to(output.path).as_posix()
        if path.is_file() and name not in known and name.split("/")[0] not in LEFTOVERS:
            yield f"{name}: is no part of the output"
