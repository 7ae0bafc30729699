"""One training run as a stage: samples in, a checkpoint output, curves and metadata out.

The loop is `sr_models/training/loop.py`, its settings are made in `training_plan.py`; what the
kinds of models differ in comes as a `Trainee`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_assets.assets.training_plan import LossSchedule, loss_schedule, train_settings
from sr_assets.assets.validation import validation_psnr
from sr_assets.lineage.stage import Observe, StageContext, StageError
from sr_assets.recipe.networks import Model
from sr_assets.stores.checkpoint import write_checkpoints, write_model
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import PatchReader
from sr_assets.stores.samples import DatasetStores, Fresh, NoSamplesError, TrainingSamples

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sr_models.losses.registry import LossTerms

_POINTS = 48  # of the losses and as many of PSNR-Y in Dagster; TensorBoard has every one

Report = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Trainee:
    """What a kind of model differs in.

    In a batch, "lr", "hr" and "sr/<name>" are float32 [B, 3, H, W].
    """

    architecture: str
    args: Mapping[str, Any]
    build: Callable[[], nn.Module]
    """A fresh network; draws from torch's random state."""
    forward: Callable[[nn.Module, dict[str, Tensor]], Tensor]
    losses: Callable[[LossTerms, Tensor, dict[str, Tensor], Mapping[str, float]], dict[str, Tensor]]
    """(opened losses, SR, batch, weights of the stage by name) -> named weighted terms."""
    rivals: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    """A batch without "hr" -> name -> SR: what validation shows beside the model."""
    caches: Mapping[str, str]
    """Name in the batch -> asset of its cache, such as {"hat": "expert/hat/cache"}."""
    experts: tuple[str, ...] = ()
    """Whose pictures the network needs, in its order; empty for one that needs LR alone."""
    features: tuple[str, ...] = ()
    """Whose features a batch also has, as "features/<name>" float32 [B, C, h, w]."""
    taps: Mapping[str, str] = field(default_factory=dict)
    """Name -> module of the expert that its features come from."""
    prepare: Callable[[nn.Module], None] = lambda _: None
    """Makes a network ready to be trained, once it has the weights that it starts from."""
    finish: Callable[[nn.Module], dict[str, Any]] = lambda _: {}
    """Takes back what `prepare` did; what it learnt beside the weights, for `model.json`."""
    describe: Callable[[nn.Module], str] = lambda _: ""
    """One line about the network for the log."""
    fresh: Fresh | None = None
    """Makes LR anew each time a sample is seen; the stored LR where left out."""


def against_hr(
    terms: LossTerms, output: Tensor, batch: dict[str, Tensor], weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """The losses of a model that learns from HR alone."""
    return terms(output, batch["hr"], weights, "hr/")


def train_model(context: StageContext, name: str, model: Model, trainee: Trainee) -> dict[str, Any]:
    """Trains one model and writes what it is and how it came about.

    Files: `model.safetensors`, `model.json`, `history.json`, TensorBoard's, and of the best steps
    and the milestones the averaged weights, `checkpoints/step-<step>.safetensors` (and `.pth`).

    A killed run goes on from its last checkpoint in the output's work folder.

    Returns:
        Metadata: parameters, steps, the step that was chosen, its validation PSNR-Y (see
        `validation_psnr`) and that of the rivals on the same images.

    Raises:
        StageError: there is nothing to train or validate on, something that the recipe asks for is
            not on this machine, or the training went astray.
    """
    import torch

    from sr_models.device import pick_device
    from sr_models.export.fusing import fused_copy
    from sr_models.export.weights import running_parameters
    from sr_models.training.loop import NonFiniteLoss, Task, train

    recipe, path = context.recipe, f"models.{name}"
    device = pick_device(recipe.compute.device).type
    _require_tracker(model, path)
    samples = _open_samples(context, model, trainee)
    schedule = loss_schedule(model.train, len(samples))
    terms = _open_terms(schedule, device, path)
    network = _build(model, trainee, path)
    try:
        settings = train_settings(model.train, len(samples), device)
    except ValueError as error:
        raise StageError(f"{path}.train: {error}") from error
    parameters = running_parameters(fused_copy(network))
    context.log(
        f"{name}: {parameters:,} parameters, {len(samples)} samples, "
        f"{settings.steps} steps on {device}"
    )
    if described := trainee.describe(network):
        context.log(f"{name}: {described}")

    def batches(number: int) -> dict[str, Tensor]:
        arrays = samples.batch(number, settings.batch, settings.crop, settings.seed)
        return {key: torch.from_numpy(array) for key, array in arrays.items()}

    announce = _announcer(schedule, lambda line: context.log(f"{name}: {line}"))

    def losses(output: Tensor, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        stage = schedule.stage(step)
        announce(stage)
        return trainee.losses(terms, output, batch, schedule.weights[stage])

    def validate(averaged: nn.Module) -> float:
        own = validation_psnr(samples, lambda b: {name: trainee.forward(averaged, b)}, device)
        return own[name]

    with (
        context.progress(f"training {name}", settings.steps, "steps") as advance,
        _tracked(context, name, model, path) as track,
    ):
        draw = _curves(context.observe, settings.steps)

        def report(step: int, numbers: Mapping[str, float]) -> None:
            draw(step, numbers)
            track(step, numbers)

        try:
            result = train(
                network,
                Task(trainee.forward, losses),
                batches,
                validate,
                settings,
                context.output.work,
                report=report,
                advance=advance,
            )
        except (NonFiniteLoss, ValueError) as error:
            raise StageError(f"{path}: {error}") from error

    network.load_state_dict(result.state, strict=True)
    network.eval()
    psnr = validation_psnr(
        samples, lambda b: {name: trainee.forward(network, b), **trainee.rivals(b)}, device
    )
    own = psnr.pop(name)
    learnt = trainee.finish(network)
    description = {
        "name": name,
        "kind": model.kind,
        "architecture": trainee.architecture,
        "args": dict(trainee.args),
        "scale": recipe.scale,
        "experts": list(trainee.experts),
        "taps": dict(trainee.taps),
        "teachers": list(recipe.teachers_of(name)),
        "quantisation_aware": getattr(model, "quantisation_aware", False),
        "datasets": list(recipe.training_datasets(model.datasets)),
        "parameters": parameters,
        "steps": result.steps,
        "step": result.step,
        "validation_psnr_y": own,
        "validation_rivals": psnr,
        **learnt,
    }
    write_model(context.output, network.cpu().eval(), description)
    write_checkpoints(context.output, context.output.work / "checkpoints", result.kept)
    context.output.write_json("history.json", result.history, content=False)
    _take_curves(context)
    return {
        "parameters": parameters,
        "psnr_y": own,
        "step": result.step,
        "steps": result.steps,
        **{f"psnr_y_{rival}": value for rival, value in psnr.items()},
    }


def _build(model: Model, trainee: Trainee, path: str) -> nn.Module:
    """The network to train, at random or from the weights that the recipe names."""
    from sr_models.training.determinism import seeded
    from sr_models.training.start import start_from

    with seeded(model.train.seed):
        try:
            network = trainee.build()
        except ValueError as error:
            raise StageError(f"{path}.network: {error}") from error
    if model.train.start_from is not None:
        try:
            start_from(network, Path(model.train.start_from))
        except ValueError as error:
            raise StageError(f"{path}.train.start_from: {error}") from error
    try:
        trainee.prepare(network)
    except ValueError as error:
        raise StageError(f"{path}: {error}") from error
    return network


def _open_terms(schedule: LossSchedule, device: str, path: str) -> LossTerms:
    """All loss terms of the run: what one lacks is told before the first step."""
    import torch

    from sr_models.losses.registry import open_losses

    try:
        return open_losses(schedule.names, torch.device(device))
    except ValueError as error:
        field = "stages" if len(schedule.weights) > 1 else "loss"
        raise StageError(f"{path}.train.{field}: {error}") from error


def _announcer(schedule: LossSchedule, log: Callable[[str], None]) -> Callable[[int], None]:
    """Tells the log of each loss stage once, when its first step is taken."""
    told: int | None = None

    def announce(stage: int) -> None:
        nonlocal told
        if stage != told and len(schedule.weights) > 1:
            log(schedule.describe(stage))
        told = stage

    return announce


def _open_samples(context: StageContext, model: Model, trainee: Trainee) -> TrainingSamples:
    caches = trainee.caches
    stores = [
        DatasetStores(
            name=dataset,
            patches=PatchReader(context.input("silver/patches", dataset)),
            pairs=PairReader(context.input("gold/pairs", dataset)),
            caches={n: CacheReader(context.input(asset, dataset)) for n, asset in caches.items()},
        )
        for dataset in context.recipe.training_datasets(model.datasets)
    ]
    cached = trainee.features if caches else ()
    try:
        return TrainingSamples(
            stores, context.recipe.scale, cached, model.train.augment, trainee.fresh
        )
    except NoSamplesError as error:
        raise StageError(f"{error}: add images to the dataset or lower silver.min_side") from error
    except ValueError as error:
        raise StageError(str(error)) from error


def _require_tracker(model: Model, path: str) -> None:
    from sr_models.training.trackers import require_tracker

    if model.train.tracker:
        try:
            require_tracker(model.train.tracker)
        except ValueError as error:
            raise StageError(f"{path}.train.tracker: {error}") from error


@contextmanager
def _tracked(context: StageContext, name: str, model: Model, path: str) -> Iterator[Report]:
    """Yields what passes points on to the tracker of the recipe, if it has one."""
    from sr_models.training.trackers import TrackerError, tracked

    if model.train.tracker is None:
        yield lambda step, numbers: None
        return
    try:
        with tracked(
            model.train.tracker,
            project=context.recipe.name,
            run=f"{name}-{context.output.final.name}",  # a resumed run has the same address
            config=model.train.model_dump(mode="json"),
        ) as track:
            yield track
    except TrackerError as error:
        raise StageError(f"{path}.train.tracker: {error}") from error


def _curves(observe: Observe, steps: int) -> Report:
    """Passes points on to Dagster, evenly thinned; the last of each kind is always drawn."""
    drawn = {True: -math.inf, False: -math.inf}
    known: dict[str, float] = {}

    def report(step: int, numbers: Mapping[str, float]) -> None:
        nonlocal known
        validated = "psnr_y" in numbers
        if step - drawn[validated] < steps / _POINTS and step != steps:
            return
        drawn[validated] = step
        known = carried(known, numbers)
        observe({"step": step, **known})

    return report


def carried(known: Mapping[str, float], numbers: Mapping[str, float]) -> dict[str, float]:
    """The curves' values after a point: its own, and the last known of the curves it says nothing
    of, since Dagster breaks a curve at every observation that lacks it.

    >>> carried({"train/psnr_y": 30.0}, {"loss/total": 0.5, "loss/hr/l1": 0.5})
    {'train/psnr_y': 30.0, 'train/loss': 0.5, 'train/hr/l1': 0.5}
    """
    total = {"loss": numbers["loss/total"]} if "loss/total" in numbers else {}
    named = {k.removeprefix("loss/"): v for k, v in numbers.items() if k != "loss/total"}
    return {**known, **{f"train/{k}": v for k, v in {**total, **named}.items()}}


def _take_curves(context: StageContext) -> None:
    folder = context.output.work / "tensorboard"
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            name = f"tensorboard/{file.relative_to(folder).as_posix()}"
            context.output.take(file, name, content=False)
