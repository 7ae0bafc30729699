"""The pairs that exported files are measured on, and what the experts of a fusion make of them.

The stores are `sr_assets/stores`; measuring is `sr_models/export/parity.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sr_assets.assets.exporting.subject import Sample
from sr_assets.lineage.stage import StageContext, StageError
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import PatchReader

if TYPE_CHECKING:
    from sr_models.experts.loading import Expert


def read_samples(
    context: StageContext, datasets: Sequence[str], count: int, split: int
) -> tuple[Sample, ...]:
    """At most `count` pairs of one split of some datasets, evenly spread over it, first variants.

    Raises:
        StageError: the split is empty in all of them.
    """
    import torch

    stores = [
        (
            d,
            PatchReader(context.input("silver/patches", d)),
            PairReader(context.input("gold/pairs", d)),
        )
        for d in datasets
    ]
    every = [
        (name, patches, pairs, int(index))
        for name, patches, pairs in stores
        for index in np.flatnonzero(patches.split == split)
    ]
    if not every:
        raise StageError(
            f"no patch of {', '.join(datasets)} to measure exported files on: lower "
            "silver.min_detail or silver.patch_size"
        )
    chosen = np.unique(np.linspace(0, len(every) - 1, count).round().astype(int))
    found = []
    for name, patches, pairs, index in (every[c] for c in chosen):
        lr = pairs.lr(index, 0).astype(np.float32) / np.float32(255)
        planes = torch.from_numpy(lr).permute(2, 0, 1)[None].contiguous()
        found.append(Sample(planes, patches.hr(index), f"{name}/{index}"))
    return tuple(found)


def with_experts(
    samples: Sequence[Sample], experts: Mapping[str, Expert], features: Sequence[str]
) -> tuple[Sample, ...]:
    """The samples with the pictures of `experts`, and the features of those in `features`."""
    from sr_models.experts.running import run_expert

    found = []
    for sample in samples:
        made = {
            name: run_expert(expert, sample.lr, batch=1, features=name in features)
            for name, expert in experts.items()
        }
        maps = {name: out.features for name, out in made.items() if out.features is not None}
        sr = {name: out.sr for name, out in made.items()}
        found.append(replace(sample, sr=sr, features=maps))
    return tuple(found)
