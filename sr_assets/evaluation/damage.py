"""Measures one row on every degraded version of every held-out patch, sample by sample.

Where its pictures come from is `model_damage.py` and `expert_damage.py`; several rows are put side
by side in `damage_board.py`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sr_assets.evaluation.damage_kinds import Kind, kinds_in, kinds_of
from sr_assets.evaluation.damage_means import markdown, means_by_kind
from sr_assets.evaluation.pixels import encode_png, to_tensor
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.storage import Output
from sr_assets.stores.pairs import AppliedStep, PairReader
from sr_assets.stores.patches import VALIDATION, PatchReader
from sr_models.degradations.steps import Process

if TYPE_CHECKING:
    from torch import Tensor

DAMAGE, SCORES = "damage.json", "damage.parquet"
#: Samples whose pictures are kept, at most.
_EXAMPLES = 8
_SCHEMA = pa.schema(
    [
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("variant", pa.int16(), nullable=False),
        pa.field("psnr_y", pa.float64(), nullable=False),
        pa.field("bicubic", pa.float64(), nullable=False),
        pa.field("kinds", pa.list_(pa.int16()), nullable=False),
    ]
)

#: (dataset, its LR, samples (patch, variant)) -> their SR in that order, [B, 3, S, S] at a time.
Pictures = Callable[[str, PairReader, Sequence[tuple[int, int]]], Iterator["Tensor"]]


@dataclass(frozen=True)
class Sample:
    """One degraded version of one held-out patch."""

    dataset: str
    index: int
    variant: int
    kinds: tuple[int, ...]
    steps: tuple[AppliedStep, ...]


@dataclass(frozen=True)
class Scores:
    """What one row made of the samples, as its output keeps it."""

    samples: tuple[tuple[str, int, int], ...]
    """(dataset, patch, variant) of each of N."""
    psnr_y: np.ndarray
    """float64 [N], dB; infinite where exact."""
    bicubic: np.ndarray
    """The same of bicubic."""
    members: np.ndarray
    """bool [N, kinds]."""
    kinds: Sequence[Mapping[str, Any]]
    """{"group", "label", "part"} of each kind."""
    examples: Sequence[Mapping[str, Any]]
    """{"dataset", "index", "variant", "steps", "psnr_y", "bicubic"} of the samples whose pictures
    `example_picture` names."""


def measure_damage(
    context: StageContext,
    name: str,
    datasets: Sequence[str],
    process: Process,
    pictures: Pictures,
) -> dict[str, Any]:
    """Writes `damage.parquet`, `damage.json` and pictures of a few samples; returns metadata.

    `damage.parquet` has a row for each sample: dataset, index, variant, PSNR-Y of the row and of
    bicubic (infinite where exact), and the kinds of damage as numbers into "kinds" of
    `damage.json`, which holds the means of `means_by_kind` too.

    Args:
        context: of the run.
        name: of the row.
        datasets: whose held-out patches are measured.
        process: that made their LR.
        pictures: of the row.

    Raises:
        StageError: a picture is not finite.
    """
    kinds = kinds_of(process)
    samples = [sample for d in datasets for sample in _samples(context, d, kinds)]
    members = _members([sample.kinds for sample in samples], len(kinds))
    examples = choose_examples(members, [(s.dataset, s.index) for s in samples], _EXAMPLES)
    scores = np.empty((len(samples), 2))
    with context.progress(str(context.ref), len(samples), "samples") as advance:
        for number, hr, lr, sr in _pictures(context, samples, pictures):
            scores[number], rounded = _measure(context, name, samples[number], hr, lr, sr)
            if number in examples:
                place = examples.index(number)
                for what, picture in {"hr": hr, "lr": lr, **rounded}.items():
                    context.output.write_bytes(example_picture(place, what), encode_png(picture))
            advance(1)
    said = [{"group": kind.group, "label": kind.label, "part": kind.part} for kind in kinds]
    means = means_by_kind(said, members, scores[:, 1], {name: scores[:, 0]})
    shown = [_example(samples[number], scores[number]) for number in examples]
    context.output.write_json(DAMAGE, {"name": name, "kinds": said, **means, "examples": shown})
    context.output.write_bytes(SCORES, _table(samples, scores))
    own = means["all"]["rows"][name]
    numbers = {"psnr_y": own["psnr_y"], "psnr_y_bicubic": means["all"]["bicubic"]}
    return {
        "samples": len(samples),
        **{key: value for key, value in numbers.items() if value is not None},
        **({} if own["gain"] is None else {"gain": own["gain"]}),
        "damage": {"md": markdown(means, name)},
    }


def read_damage(output: Output) -> Scores:
    """What `measure_damage` wrote."""
    described = output.read_json(DAMAGE)
    table = pq.read_table(io.BytesIO(output.read_bytes(SCORES)))
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return Scores(
        tuple(zip(columns["dataset"], columns["index"], columns["variant"], strict=True)),
        np.asarray(columns["psnr_y"], np.float64),
        np.asarray(columns["bicubic"], np.float64),
        _members(columns["kinds"], len(described["kinds"])),
        described["kinds"],
        described["examples"],
    )


def example_picture(place: int, what: str) -> str:
    """File of a picture of example `place`; `what` is hr, lr, bicubic or sr."""
    return f"examples/{place}-{what}.png"


def choose_examples(
    members: np.ndarray, patches: Sequence[tuple[str, int]], count: int
) -> list[int]:
    """Samples that show as many kinds of damage as possible, each of another patch.

    The one with the most kinds that no earlier one shows comes first, the earlier sample of equals.

    Args:
        members: bool [N, kinds].
        patches: of which patch each sample is.
        count: how many, at most.
    """
    chosen: list[int] = []
    missing, free = np.ones(members.shape[1], bool), np.ones(len(members), bool)
    while len(chosen) < count and free.any():
        new = np.where(free, (members & missing).sum(1), -1)
        number = int(new.argmax())
        if new[number] == 0:  # all is shown: begin again with what has been shown least
            missing[:] = True
            new = np.where(free, members.sum(1), -1)
            number = int(new.argmax())
        chosen.append(number)
        missing &= ~members[number]
        free &= np.array([patch != patches[number] for patch in patches])
    return chosen


def _samples(context: StageContext, dataset: str, kinds: Sequence[Kind]) -> Iterator[Sample]:
    patches = PatchReader(context.input("silver/patches", dataset))
    pairs = PairReader(context.input("gold/pairs", dataset))
    for index, variant, steps in pairs.steps(patches.split == VALIDATION):
        yield Sample(dataset, index, variant, kinds_in(kinds, steps), steps)


def _pictures(
    context: StageContext, samples: Sequence[Sample], pictures: Pictures
) -> Iterator[tuple[int, np.ndarray, np.ndarray, Tensor]]:
    """(number of the sample, HR, LR, SR [3, S, S]) of all samples, dataset by dataset."""
    for dataset in dict.fromkeys(sample.dataset for sample in samples):
        numbers = [n for n, sample in enumerate(samples) if sample.dataset == dataset]
        patches = PatchReader(context.input("silver/patches", dataset))
        pairs = PairReader(context.input("gold/pairs", dataset))
        wanted = [(samples[n].index, samples[n].variant) for n in numbers]
        made = (sr for batch in pictures(dataset, pairs, wanted) for sr in batch)
        for number, (index, variant), sr in zip(numbers, wanted, made, strict=True):
            yield number, patches.hr(index), pairs.lr(index, variant), sr


def _measure(
    context: StageContext, name: str, sample: Sample, hr: np.ndarray, lr: np.ndarray, sr: Tensor
) -> tuple[tuple[float, float], dict[str, np.ndarray]]:
    """PSNR-Y of the row and of bicubic (dB), and their rounded pictures as `sr` and `bicubic`."""
    from sr_models.degradations.bicubic import upscale
    from sr_models.metrics.images import psnr_y, to_uint8

    scale = context.recipe.scale
    # In double precision, as the row of benchmarks: no half way value is rounded by accident.
    bicubic = to_uint8(upscale(to_tensor(lr).double(), scale)[0])
    try:
        own = to_uint8(sr)
    except ValueError as error:
        where = f"patch {sample.index}, variant {sample.variant} of {sample.dataset}"
        raise StageError(f"{context.ref}: {name} on {where}: {error}: make it again") from error
    scores = psnr_y(own, hr, scale), psnr_y(bicubic, hr, scale)
    return scores, {"sr": own, "bicubic": bicubic}


def _members(kinds: Sequence[Sequence[int]], count: int) -> np.ndarray:
    members = np.zeros((len(kinds), count), bool)
    for row, numbers in zip(members, kinds, strict=True):
        row[list(numbers)] = True
    return members


def _example(sample: Sample, scores: np.ndarray) -> dict[str, Any]:
    own, bicubic = (None if math.isinf(score) else float(score) for score in scores)
    return {
        "dataset": sample.dataset,
        "index": sample.index,
        "variant": sample.variant,
        "psnr_y": own,
        "bicubic": bicubic,
        "steps": [asdict(step) for step in sample.steps],
    }


def _table(samples: Sequence[Sample], scores: np.ndarray) -> bytes:
    columns = {
        "dataset": [sample.dataset for sample in samples],
        "index": [sample.index for sample in samples],
        "variant": [sample.variant for sample in samples],
        "psnr_y": scores[:, 0],
        "bicubic": scores[:, 1],
        "kinds": [list(sample.kinds) for sample in samples],
    }
    sink = io.BytesIO()
    table = pa.Table.from_pydict(columns, schema=_SCHEMA)
    pq.write_table(table, sink, compression="zstd", store_schema=False)
    return sink.getvalue()
