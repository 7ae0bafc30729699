"""One training run as a stage: samples in, a checkpoint output, curves and metadata out.

The loop is `sr_models/training/loop.py`; what the kinds of models differ in comes as a `Trainee`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from sr_assets.lineage.stage import Observe, StageContext, StageError
from sr_assets.recipe.models import Model, StudentModel, Train
from sr_assets.stores.checkpoint import write_model
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import PatchReader
from sr_assets.stores.samples import DatasetStores, Tile, TrainingSamples, assemble

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sr_models.training.settings import TrainSettings

_POINTS = 48  # of the losses and as many of PSNR-Y in Dagster; TensorBoard has every one
_TILES = 16  # patches at a time in validation


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
    losses: Callable[[Tensor, dict[str, Tensor]], dict[str, Tensor]]
    rivals: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    """A batch without "hr" -> name -> SR: what validation shows beside the model."""
    caches: Mapping[str, str]
    """Name in the batch -> asset of its cache, such as {"hat": "expert/hat/cache"}."""
    experts: tuple[str, ...] = ()
    """Whose pictures the network needs, in its order; empty for one that needs LR alone."""


def train_model(context: StageContext, name: str, model: Model, trainee: Trainee) -> dict[str, Any]:
    """Trains one model and writes `model.safetensors`, `model.json`, `history.json`, TensorBoard.

    A killed run goes on from its last checkpoint in the output's work folder.

    Returns:
        Metadata: parameters, steps, the step that was chosen, its validation PSNR-Y (see
        `validation_psnr`) and that of the rivals on the same patches.

    Raises:
        StageError: there is nothing to train or validate on, or the training went astray.
    """
    import torch

    from sr_models.device import pick_device
    from sr_models.export.weights import running_parameters
    from sr_models.training.determinism import seeded
    from sr_models.training.loop import NonFiniteLoss, Task, train

    recipe, settings = context.recipe, model.train
    datasets = recipe.training_datasets(model.datasets)
    samples = _open_samples(context, datasets, trainee.caches)
    device = pick_device(recipe.compute.device).type
    with seeded(settings.seed):
        try:
            network = trainee.build()
        except ValueError as error:
            raise StageError(f"models.{name}.network: {error}") from error
    parameters = running_parameters(network)
    context.log(
        f"{name}: {parameters:,} parameters, {len(samples)} samples, "
        f"{settings.steps} steps on {device}"
    )

    def batches(number: int) -> dict[str, Tensor]:
        arrays = samples.batch(number, settings.batch, settings.crop, settings.seed)
        return {key: torch.from_numpy(array) for key, array in arrays.items()}

    def validate(averaged: nn.Module) -> float:
        return validation_psnr(samples, lambda b: {name: trainee.forward(averaged, b)}, device)[
            name
        ]

    with context.progress(f"training {name}", settings.steps, "steps") as advance:
        try:
            result = train(
                network,
                Task(trainee.forward, trainee.losses),
                batches,
                validate,
                _settings(settings, device),
                context.output.work,
                report=_curves(context.observe, settings.steps),
                advance=advance,
            )
        except (NonFiniteLoss, ValueError) as error:
            raise StageError(f"models.{name}: {error}") from error

    network.load_state_dict(result.state, strict=True)
    rivals = validation_psnr(samples, trainee.rivals, device)
    description = {
        "name": name,
        "kind": model.kind,
        "architecture": trainee.architecture,
        "args": dict(trainee.args),
        "scale": recipe.scale,
        "experts": list(trainee.experts),
        "teacher": model.teacher if isinstance(model, StudentModel) else None,
        "datasets": list(datasets),
        "parameters": parameters,
        "steps": result.steps,
        "step": result.step,
        "validation_psnr_y": result.psnr_y,
        "validation_rivals": rivals,
    }
    write_model(context.output, network.cpu().eval(), description)
    context.output.write_json("history.json", result.history, content=False)
    _take_curves(context)
    return {
        "parameters": parameters,
        "psnr_y": result.psnr_y,
        "step": result.step,
        "steps": result.steps,
        **{f"psnr_y_{rival}": value for rival, value in rivals.items()},
    }


def validation_psnr(
    samples: TrainingSamples,
    upscale: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    device: str,
) -> dict[str, float]:
    """Mean PSNR-Y (dB) over the held-out images, each put together from its patches.

    Each patch is enlarged on its own, without its neighbours, and what no whole patch covers is
    left out: compare these numbers with one another, not with those of a benchmark.

    An image that is met exactly has no finite PSNR and is left out of the mean.

    Args:
        samples: opened stores.
        upscale: a batch "lr", "sr/<name>" on `device` -> name -> SR [B, 3, S, S].
        device: where the batches go.
    """
    import torch

    from sr_models.metrics.images import psnr_y, to_uint8

    found: dict[str, list[float]] = {}
    for _, tiles in samples.validation_images():
        pictures: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(tiles), _TILES):
            # Not inference_mode: SPAN refreshes its merged kernels here, and training goes on.
            with torch.no_grad():
                upscaled = upscale(_batch(tiles[start : start + _TILES], device))
            for name, sr in upscaled.items():
                pictures.setdefault(name, []).extend(to_uint8(sr))
        hr = assemble(tiles, [tile.hr for tile in tiles])
        for name, parts in pictures.items():
            psnr = psnr_y(assemble(tiles, parts), hr, border=samples.scale)
            found.setdefault(name, []).append(psnr)
    return {name: _mean_of_finite(values) for name, values in found.items()}


def _mean_of_finite(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.inf


def _open_samples(
    context: StageContext, datasets: Sequence[str], caches: Mapping[str, str]
) -> TrainingSamples:
    stores = [
        DatasetStores(
            name=dataset,
            patches=PatchReader(context.input("silver/patches", dataset)),
            pairs=PairReader(context.input("gold/pairs", dataset)),
            caches={n: CacheReader(context.input(asset, dataset)) for n, asset in caches.items()},
        )
        for dataset in datasets
    ]
    try:
        return TrainingSamples(stores, context.recipe.scale)
    except ValueError as error:
        raise StageError(f"{error}: add images to the dataset or lower silver.min_side") from error


def _batch(tiles: Sequence[Tile], device: str) -> dict[str, Tensor]:
    import torch

    arrays = {"lr": np.stack([tile.lr for tile in tiles])}
    for name in tiles[0].sr:
        arrays[f"sr/{name}"] = np.stack([tile.sr[name] for tile in tiles])
    return {key: torch.from_numpy(array).to(device) for key, array in arrays.items()}


def _settings(train: Train, device: str) -> TrainSettings:
    from sr_models.training.settings import TrainSettings

    known = {field.name for field in fields(TrainSettings)}
    return TrainSettings(**{k: v for k, v in train if k in known}, device=device)


def _curves(observe: Observe, steps: int) -> Callable[[int, Mapping[str, float]], None]:
    """Passes points on to Dagster, evenly thinned; the last of each kind is always drawn."""
    drawn = {True: -math.inf, False: -math.inf}

    def report(step: int, numbers: Mapping[str, float]) -> None:
        validated = "psnr_y" in numbers
        if step - drawn[validated] < steps / _POINTS and step != steps:
            return
        drawn[validated] = step
        total = {"loss": numbers["loss/total"]} if "loss/total" in numbers else {}
        named = {k.removeprefix("loss/"): v for k, v in numbers.items() if k != "loss/total"}
        observe({"step": step, **{f"train/{k}": v for k, v in {**total, **named}.items()}})

    return report


def _take_curves(context: StageContext) -> None:
    folder = context.output.work / "tensorboard"
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            name = f"tensorboard/{file.relative_to(folder).as_posix()}"
            context.output.take(file, name, content=False)
