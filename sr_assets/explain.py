"""One training sample explained: what was done to its HR, step by step, and what came of it.

The steps are those of the store's own table, done again to the stored HR: nothing is drawn anew,
and nothing is written. The picture of all steps is `explain_sheet.py`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import dagster as dg
import numpy as np

from sr_assets.assets.gold import KEY
from sr_assets.graph import Graph
from sr_assets.lineage.code_version import code_version
from sr_assets.lineage.plan import differences
from sr_assets.lineage.records import address_of, current_output
from sr_assets.lineage.stage import Ref, StageError
from sr_assets.pictures import Pixels
from sr_assets.report.damage_words import step_words
from sr_assets.storage import Output, open_output
from sr_assets.stores.pairs import PARAMS, AppliedStep, PairReader, SampleSteps
from sr_assets.stores.patches import TRAIN, PatchReader

_SILVER = "silver/patches"
#: What a random process is made of; other steps cannot be done again from the table.
_DRAWN_OPS = frozenset({"blur", "resize", "noise", "jpeg", "webp", "sinc"})


@dataclass(frozen=True)
class Explained:
    """One sample: where it is from, its steps, and the pictures along the way."""

    dataset: str
    index: int
    variant: int
    variants: int
    """Versions of this patch in the store, K."""
    degradation: str
    """Name of the preset, or composed."""
    image: str
    """Relative path of the source image."""
    y: int
    """Upper left corner of the patch in the image (px); `x` likewise."""
    x: int
    split: str
    """training or validation"""
    hr: Pixels
    lr: Pixels
    """As the store holds it."""
    steps: SampleSteps
    """As the store's table holds them."""
    pictures: tuple[Pixels, ...]
    """After each step, made again now; empty for LR that is not made from HR."""
    psnr_y: float | None
    """Of LR enlarged by bicubic (dB); None where the patch is too small to be measured."""
    changed: tuple[str, ...]
    """What of recipe, code and inputs is no longer as it was when the store was made."""

    @property
    def place(self) -> str:
        """Where the patch lies, in words; a name with control characters is quoted."""
        name = self.image if self.image.isprintable() else repr(self.image)
        return f"{name} at y {self.y}, x {self.x}"

    @property
    def scale(self) -> int:
        """HR over LR."""
        return len(self.hr) // len(self.lr)

    @property
    def same(self) -> bool | None:
        """Whether LR made again is the stored LR, byte by byte; None where it cannot be made."""
        return np.array_equal(self.pictures[-1], self.lr) if self.pictures else None


def explain_sample(
    graph: Graph, instance: dg.DagsterInstance, dataset: str, index: int, variant: int = 0
) -> Explained:
    """Explains version `variant` of patch `index` of a dataset.

    Raises:
        StageError: there is no such dataset, patch or version, or it has not been made.
        DamagedStoreError: what is stored is not what was written.
    """
    ref = Ref(KEY, dataset)
    if dataset not in graph.recipe.datasets:
        raise StageError(f"no dataset {dataset!r}; there are: {', '.join(graph.recipe.datasets)}")
    gold = current_output(instance, graph, ref)
    if gold is None:
        raise StageError(f"{ref} has not been made: run `srd build '{ref}'`")
    pairs, patches = PairReader(gold), PatchReader(_patches_of(graph, ref, gold))
    if not 0 <= index < len(pairs):
        raise StageError(f"{ref} has {len(pairs)} patches, 0 to {len(pairs) - 1}: none is {index}")
    if not 0 <= variant < pairs.variants:
        count = f"{pairs.variants} versions" if pairs.variants > 1 else "one version"
        raise StageError(
            f"{ref} has {count} of each patch, the first is 0: there is no --variant {variant}"
        )
    degradation, steps = _recorded(ref, gold, index * pairs.variants + variant, index, variant)
    hr, lr = patches.hr(index), pairs.lr(index, variant)
    return Explained(
        dataset=dataset,
        index=index,
        variant=variant,
        variants=pairs.variants,
        degradation=degradation,
        image=patches.images[int(patches.image[index])],
        y=int(patches.y[index]),
        x=int(patches.x[index]),
        split="training" if patches.split[index] == TRAIN else "validation",
        hr=hr,
        lr=lr,
        steps=steps,
        pictures=_pictures(hr, steps, degradation, gold, variant),
        psnr_y=_psnr_y(hr, lr),
        changed=_changes(graph, instance, ref, gold),
    )


def explained_lines(found: Explained) -> list[str]:
    """What `srd explain` prints, a line each."""
    count = f", version {found.variant} of {found.variants}" if found.variants > 1 else ""
    lines = [
        f"{found.dataset} patch {found.index}{count}: {found.degradation}, ×{found.scale}",
        f"from {found.place}, {_size(found.hr)}, for {found.split}",
        "",
    ]
    words = [step_words(step) for step in found.steps]
    width = max((len(word) for word in words), default=0)
    for number, word in enumerate(words, start=1):
        size = f"  {_size(found.pictures[number - 1])}" if found.pictures else ""
        lines.append(f"{number:3}  {word:{width}}{size}".rstrip())
    if not found.pictures:
        lines.append(_NOT_MADE if _brought(found.steps) else _NOT_AGAIN)
    psnr = _decibels(found.psnr_y)
    lines += ["", f"LR {_size(found.lr)}; enlarged by bicubic, PSNR-Y {psnr} against HR"]
    code = " by the code of today" if found.changed else ""
    if found.same:
        lines.append(f"Made again from the stored numbers{code}: the same bytes.")
    elif found.same is False:
        away = np.abs(found.pictures[-1].astype(np.int16) - found.lr)
        lines.append(
            f"Made again from the stored numbers{code}: NOT the same bytes: "
            f"{np.count_nonzero(away)} of {away.size} values differ, by up to {away.max()} levels."
        )
    if found.changed:
        lines.append(
            f"{Ref(KEY, found.dataset)} was made before a change: {'; '.join(found.changed)}."
        )
    return lines


_NOT_MADE = "     LR is the dataset's own: it came with HR and was not made from it."
_NOT_AGAIN = "     These steps cannot be done again by the code of today."


def explained_json(found: Explained) -> dict[str, Any]:
    """What `srd explain --json` prints."""
    sizes = [picture.shape[:2] for picture in found.pictures] or [(None, None)] * len(found.steps)
    psnr = found.psnr_y
    return {
        "dataset": found.dataset,
        "index": found.index,
        "variant": found.variant,
        "variants": found.variants,
        "degradation": found.degradation,
        "scale": found.scale,
        "image": found.image,
        "y": found.y,
        "x": found.x,
        "split": found.split,
        "hr": {"height": len(found.hr), "width": found.hr.shape[1], "sha256": _digest(found.hr)},
        "steps": [
            {
                "op": step.op,
                "kind": step.kind,
                "position": step.position,
                "numbers": dict(step.numbers),
                "words": step_words(step),
                "height": height,
                "width": width,
            }
            for step, (height, width) in zip(found.steps, sizes, strict=True)
        ],
        "lr": {"height": len(found.lr), "width": found.lr.shape[1], "sha256": _digest(found.lr)},
        # JSON has no infinity
        "psnr_y": psnr if psnr is not None and math.isfinite(psnr) else None,
        "same_bytes": found.same,
        "changed": list(found.changed),
    }


def _patches_of(graph: Graph, ref: Ref, gold: Output) -> Output:
    """The patch store that a pair store was made from, which need not be the current one."""
    silver = Ref(_SILVER, ref.partition)
    wanted = gold.marker["inputs"][str(silver)]
    folder = graph.folder(silver)
    for path in sorted(folder.iterdir(), key=str) if folder.is_dir() else ():
        output = None if path.name.startswith(".") else open_output(path)
        if output is not None and output.data_version == wanted:
            return output
    raise StageError(f"the patches that {ref} was made from are gone: run `srd build '{ref}'`")


def _recorded(
    ref: Ref, gold: Output, row: int, index: int, variant: int
) -> tuple[str, SampleSteps]:
    """Name of the degradation and steps of one sample, from the store's table."""
    damaged = StageError(f"{gold.path / PARAMS} is damaged: delete its output, then build {ref}")
    written = gold.marker["files"][PARAMS]["sha256"]
    if hashlib.sha256(gold.read_bytes(PARAMS)).hexdigest() != written:
        raise damaged
    rows = PairReader(gold).params().slice(row, 1).to_pylist()
    if not rows or (rows[0]["index"], rows[0]["variant"]) != (index, variant):
        raise damaged
    if rows[0].get("steps") is None:
        raise StageError(f"{ref} is of a version that kept no steps: run `srd build '{ref}'`")
    steps = (
        AppliedStep(s["op"], s["kind"], dict(s["numbers"]), s["position"]) for s in rows[0]["steps"]
    )
    return rows[0]["degradation"], tuple(steps)


def _pictures(
    hr: Pixels, steps: SampleSteps, degradation: str, gold: Output, variant: int
) -> tuple[Pixels, ...]:
    if _brought(steps):
        return ()
    if degradation == "bicubic":
        from sr_models.degradations.bicubic import downscale_uint8

        return (downscale_uint8(hr, gold.marker["settings"]["scale"]),)
    if not {step.op for step in steps} <= _DRAWN_OPS:
        return ()
    from sr_models.degradations.drawing import Drawn, sample_key
    from sr_models.degradations.second_order import pictures

    key = sample_key(
        gold.marker["settings"]["seed"], hashlib.sha256(hr.tobytes()).digest(), variant
    )
    drawn = [Drawn(step.op, step.kind, step.numbers, step.position) for step in steps]
    try:
        return tuple(picture for _, picture in pictures(hr, drawn, key))
    except (KeyError, ValueError):  # numbers that an earlier version drew
        return ()


def _brought(steps: SampleSteps) -> bool:
    """Whether LR came with the dataset."""
    return not steps or steps[0].op == "paired"


def _psnr_y(hr: Pixels, lr: Pixels) -> float | None:
    scale = len(hr) // len(lr)
    if min(hr.shape[:2]) <= 2 * scale:  # nothing is left inside the border of the convention
        return None
    import torch

    from sr_models.degradations.bicubic import upscale
    from sr_models.metrics.images import psnr_y, to_uint8

    planes = torch.from_numpy(lr.transpose(2, 0, 1).astype(np.float32) / 255)[None]
    return psnr_y(to_uint8(upscale(planes, scale))[0], hr, scale)


def _changes(graph: Graph, instance: dg.DagsterInstance, ref: Ref, gold: Output) -> tuple[str, ...]:
    """Why the store is not what a build would make from the inputs that are there now."""
    stage = graph.stages[ref.asset]
    found = {r: current_output(instance, graph, r) for r in graph.inputs(ref)}
    inputs = {r: output for r, output in found.items() if output is not None}
    outside = dict(stage.outside(ref.partition))
    if gold.path.name == address_of(stage, ref, code_version(stage), inputs, outside):
        return ()
    return tuple(differences(stage, ref, gold.marker, inputs, outside))


def _decibels(value: float | None) -> str:
    if value is None:
        return "not measurable on so small a patch"
    return f"{value:.2f} dB" if math.isfinite(value) else "infinite (identical)"


def _digest(pixels: Pixels) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}×{pixels.shape[0]} px"
