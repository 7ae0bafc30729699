"""The part of a recipe that tells a training run: losses, their stages, augmentation, optimiser.

Networks and what they learn from are `models.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from sr_assets.recipe.strict import OUTSIDE_LINEAGE, Strict


class Loss(Strict):
    """Weights of the loss terms; a term of weight 0 is not computed."""

    l1: float = Field(1.0, ge=0, description="Mean absolute error.")
    l2: float = Field(0.0, ge=0, description="Mean squared error.")
    charbonnier: float = Field(0.0, ge=0, description="sqrt(error² + ε²) with ε = 1e-6.")
    ssim: float = Field(0.0, ge=0, description="1 - SSIM, Gaussian window 11.")
    ms_ssim: float = Field(
        0.0, ge=0, description="1 - MS-SSIM; fewer scales where the crop is small."
    )
    swt: float = Field(0.0, ge=0, description="L1 of stationary wavelet bands (db4, 3 levels).")
    fft_log: float = Field(0.0, ge=0, description="L1 of log magnitudes of the spectrum.")
    fft: float = Field(0.0, ge=0, description="L1 of magnitudes of the spectrum (rfft2, ortho).")
    edge: float = Field(0.0, ge=0, description="L1 of Sobel gradient magnitudes.")
    gradient: float = Field(0.0, ge=0, description="L1 of |dx| and |dy| (local detail).")
    consistency: float = Field(0.0, ge=0, description="Oklab chroma and CIE L* consistency.")
    vgg: float = Field(0.0, ge=0, description="L1 of VGG-19 features; needs its weights.")
    lpips: float = Field(0.0, ge=0, description="LPIPS (AlexNet); needs its weights.")
    clip: float = Field(0.0, ge=0, description="1 - cosine of CLIP features; needs its weights.")


class LossStage(Strict):
    """One stage of a loss schedule."""

    until: int | None = Field(
        None, ge=1, description="First step (or epoch) after the stage; the end when left out."
    )
    loss: Loss = Field(description="Weights of the loss terms in this stage.")


class Restarts(Strict):
    """Cycles of `schedule: cosine_restarts`."""

    first: int = Field(50, ge=1, description="Length of the first cycle (steps or epochs).")
    factor: int = Field(2, ge=1, description="Each cycle is this many times the one before.")


class Augment(Strict):
    """What is done to a sample when it is read, to LR, HR, SR and features alike.

    Networks are not equivariant to photometric changes: a model that trains on a cache has
    geometric ones only.
    """

    flips: bool = Field(True, description="Mirror half of the samples.")
    rotations: bool = Field(True, description="Turn samples by multiples of 90 degrees.")
    margin: int = Field(
        0,
        ge=0,
        description="Border of a patch that no crop touches (LR px): there a cached picture was "
        "made from mirrored context.",
    )
    colour_jitter: float = Field(
        0.0, ge=0, le=1, description="Probability of a change of brightness, contrast, saturation."
    )
    jitter_strength: float = Field(0.05, ge=0, le=0.5, description="Largest relative change.")
    blur: float = Field(0.0, ge=0, le=1, description="Probability of a mild blur of LR and HR.")
    crop_scale: float = Field(
        0.0, ge=0, le=0.5, description="Crops are zoomed by 1 - this to 1 + this; 0.1 is usual."
    )
    cutblur: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Probability that a region of LR is shown at half its resolution; HR stays.",
    )
    mixup: float = Field(0.0, ge=0, le=1, description="Probability that two samples are mixed.")

    @property
    def photometric(self) -> tuple[str, ...]:
        """The fields in use that a cached picture does not follow."""
        fields = ("colour_jitter", "blur", "crop_scale", "cutblur", "mixup")
        return tuple(name for name in fields if getattr(self, name))


class Train(Strict):
    """One training run; with `epochs`, all times marked (time) are epochs instead of steps."""

    steps: int = Field(100_000, ge=1, description="Optimiser steps.")
    epochs: int | None = Field(
        None, ge=1, description="Length in epochs, passes over all training samples, not in steps."
    )
    batch: int = Field(16, ge=1, description="Crops in one micro-batch.")
    accumulate: int = Field(1, ge=1, description="Micro-batches in one optimiser step.")
    crop: int = Field(64, ge=8, description="Side of an LR crop (px).")
    augment: Augment = Field(Augment(), description="Changes of a sample when it is read.")
    optimizer: Literal[
        "adamw",
        "adam",
        "adan",
        "adamw_schedule_free",
        "adam_schedule_free",
        "adan_schedule_free",
    ] = Field("adamw", description="Schedule-free ones need `schedule: constant`.")
    learning_rate: float = Field(2e-4, gt=0, description="Largest learning rate.")
    schedule: Literal["cosine", "cosine_restarts", "constant"] = Field(
        "cosine", description="The learning rate after the warm-up."
    )
    restarts: Restarts = Field(Restarts(), description="Cycles of `cosine_restarts`.")
    min_learning_rate: float = Field(1e-7, ge=0, description="Where a cosine ends.")
    warmup: int = Field(500, ge=0, description="Linear warm-up (time).")
    warmup_from: float = Field(0.0, ge=0, description="Learning rate before the warm-up.")
    weight_decay: float = Field(
        0.0, ge=0, description="Not on one-dimensional parameters; decoupled except for adam."
    )
    betas: tuple[float, ...] | None = Field(
        None,
        description="Of the optimiser: two, or three for adan; 0.9, 0.99 or 0.98, 0.92, 0.99 when "
        "left out.",
    )
    clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 switches clipping off.")
    ema: float = Field(
        0.999, ge=0, lt=1, description="Decay of the averaged weights; 0.9995 suits long runs."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Mixed precision, where the hardware has it."
    )
    loss: Loss = Field(Loss(), description="Weights of the loss terms, without stages.")
    stages: tuple[LossStage, ...] = Field(
        (), description="Stages of a loss schedule, in order; the last goes on to the end."
    )
    start_from: str | None = Field(
        None,
        description="Fine-tuning: weights file (.safetensors, .pth) to start from, relative to the "
        "recipe file or absolute; every tensor must match.",
    )
    compile: bool = Field(False, description="Use torch.compile.")
    select: Literal["best", "last"] = Field(
        "best", description="Ship the weights of the best validation PSNR-Y or of the last step."
    )
    validate_every: int = Field(1000, ge=1, description="Between validations (time).")
    seed: int = Field(42, description="Seed of initialisation, crops and flips.")
    checkpoint_every: int = Field(
        500,
        ge=1,
        description="Steps between resumable checkpoints.",
        json_schema_extra=OUTSIDE_LINEAGE,
    )
    keep_best: int = Field(
        5, ge=1, le=20, description="Best checkpoints kept.", json_schema_extra=OUTSIDE_LINEAGE
    )
    keep_last: int = Field(
        10, ge=1, le=20, description="Newest checkpoints kept.", json_schema_extra=OUTSIDE_LINEAGE
    )
    milestones: tuple[int, ...] = Field(
        (), description="Checkpoints kept for good (time).", json_schema_extra=OUTSIDE_LINEAGE
    )
    pth: bool = Field(
        False,
        description="Also write the weights of each checkpoint as .pth with `params`.",
        json_schema_extra=OUTSIDE_LINEAGE,
    )
    tracker: Literal["wandb", "trackio"] | None = Field(
        None,
        description="Also log there, where it is installed; TensorBoard is always written.",
        json_schema_extra=OUTSIDE_LINEAGE,
    )
    log_every: int = Field(
        50,
        ge=1,
        description="Steps between points of the curves.",
        json_schema_extra=OUTSIDE_LINEAGE,
    )

    @property
    def length(self) -> int:
        """Length of the run (time)."""
        return self.steps if self.epochs is None else self.epochs

    @model_validator(mode="after")
    def _fits_together(self) -> Train:
        problem = next(_problems(self), None)
        if problem:
            raise ValueError(problem)
        return self


def _problems(train: Train) -> Iterator[str]:
    """What cannot be meant, each with its field first and the mend last."""
    given, unit = train.model_fields_set, "steps" if train.epochs is None else "epochs"
    if train.epochs is not None:
        if "steps" in given:
            yield "steps: the run has a length in epochs: leave steps or epochs out"
        for field in ("warmup", "validate_every"):
            if field not in given:
                yield f"{field}: it counts epochs where epochs are given: say how many"
    # A default warm-up may be longer than a short trial, which then only rises.
    if train.warmup > train.length and "warmup" in given:
        yield f"warmup: {train.warmup} is longer than the run ({train.length} {unit}): shorten it"
    if train.warmup_from > train.learning_rate:
        yield (
            f"warmup_from: {train.warmup_from} is above learning_rate {train.learning_rate}: "
            "lower it"
        )
    if train.milestones and max(train.milestones) > train.length:
        yield (
            f"milestones: {max(train.milestones)} is after the end of the run ({train.length} "
            f"{unit}): leave it out"
        )
    if train.milestones and min(train.milestones) < 1:
        yield f"milestones: {min(train.milestones)} is before the first of {unit}: give more"
    yield from _optimizer_problems(train)
    yield from _loss_problems(train, unit)


def _optimizer_problems(train: Train) -> Iterator[str]:
    schedule_free = train.optimizer.endswith("_schedule_free")
    if schedule_free and train.schedule != "constant":
        yield (
            f"schedule: {train.optimizer} averages in place of a schedule: set it to constant, not "
            f"{train.schedule}"
        )
    if train.betas is None:
        return
    count = 3 if train.optimizer.startswith("adan") else 2
    if len(train.betas) != count:
        yield f"betas: {train.optimizer} takes {count} numbers, not {len(train.betas)}"
    if not all(0 <= beta < 1 for beta in train.betas):
        yield f"betas: {list(train.betas)} are not all at least 0 and below 1"
    if schedule_free and not train.betas[0]:
        yield f"betas: the first must be above 0 for {train.optimizer}"


def _loss_problems(train: Train, unit: str) -> Iterator[str]:
    if not train.stages:
        if not any(train.loss.model_dump().values()):
            yield "loss: no loss term has a weight: set one above 0"
        return
    if "loss" in train.model_fields_set:
        yield "loss: the stages have losses of their own: leave loss or stages out"
    begin = 0
    for number, stage in enumerate(train.stages):
        field, last = f"stages.{number}", number == len(train.stages) - 1
        if not any(stage.loss.model_dump().values()):
            yield f"{field}.loss: no loss term has a weight: set one above 0"
        if begin >= train.length:
            yield (
                f"{field}: it would begin at {begin}, but the run has {train.length} {unit}: leave "
                "it out, or train longer"
            )
        if stage.until is None:
            if not last:
                yield f"{field}.until: only the last stage may be without: say where it ends"
            continue
        if stage.until <= begin:
            yield (
                f"{field}.until: {stage.until} is not after {begin}, where the stage begins: put "
                "the stages in order"
            )
        if last and stage.until != train.length:
            yield (
                f"{field}.until: the last stage ends at {stage.until}, the run at {train.length} "
                f"{unit}: leave until out"
            )
        begin = stage.until
