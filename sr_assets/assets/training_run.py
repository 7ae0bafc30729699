"""One run of the training loop, put together from a recipe and the stores that it trains on.

The loop is `sr_models/training/loop.py`, its settings are made in `training_plan.py`; files and
metadata of the outcome are `training.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sr_assets.assets.training_plan import LossSchedule, loss_schedule, train_settings
from sr_assets.assets.validation import validation_psnr
from sr_assets.lineage.stage import Given, StageError
from sr_assets.recipe.networks import Model
from sr_assets.stores.expert_cache import CacheReader
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import PatchReader
from sr_assets.stores.samples import DatasetStores, NoSamplesError, TrainingSamples

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sr_assets.assets.training import Trainee
    from sr_models.losses.registry import LossTerms
    from sr_models.training.loop import TrainResult
    from sr_models.training.settings import TrainSettings


@dataclass(frozen=True)
class TrainingRun:
    """What one model is trained with, opened and found to fit together."""

    name: str
    trainee: Trainee
    samples: TrainingSamples
    settings: TrainSettings
    schedule: LossSchedule
    terms: LossTerms
    network: nn.Module
    """On the CPU, untrained."""

    def train(
        self,
        work: Path,
        report: Callable[[int, Mapping[str, float]], None],
        advance: Callable[[int], None],
        say: Callable[[str], None],
    ) -> TrainResult:
        """Runs the loop in this process, on its share of every batch, or goes on in `work`.

        Args:
            work: folder of checkpoints and curves.
            report: takes (step, numbers), as the loop tells them.
            advance: takes finished steps.
            say: takes lines of the log.

        Raises:
            StageError: the training went astray, or cannot be done on this machine.
        """
        from sr_models.training.loop import NonFiniteLoss, Task, train

        announce = _announcer(self.schedule, say)

        def losses(output: Tensor, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
            stage = self.schedule.stage(step)
            announce(stage)
            return self.trainee.losses(self.terms, output, batch, self.schedule.weights[stage])

        def validate(averaged: nn.Module) -> float:
            return self.validated(lambda b: {self.name: self.trainee.forward(averaged, b)})[
                self.name
            ]

        task, batches = Task(self.trainee.forward, losses), _batches(self.samples, self.settings)
        try:
            return train(
                self.network, task, batches, validate, self.settings, work,
                report=report, advance=advance,
            )  # fmt: skip
        except (NonFiniteLoss, ValueError) as error:
            raise StageError(f"models.{self.name}: {error}") from error

    def validated(
        self, upscale: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
    ) -> dict[str, float]:
        """PSNR-Y of each row over the held-out images: see `validation_psnr`."""
        return validation_psnr(self.samples, upscale, self.settings.device)


def open_run(given: Given, name: str, trainee: Trainee, *, elsewhere: bool = False) -> TrainingRun:
    """Opens what model `name` is trained with.

    Args:
        given: recipe and inputs of the checkpoint.
        name: of the model.
        trainee: what its kind differs in.
        elsewhere: whether the steps are taken by other processes, which need the accelerators.

    Raises:
        StageError: there is nothing to train or validate on, or something that the recipe asks for
            does not fit or is not on this machine.
    """
    from sr_models.device import pick_device

    model, path = given.recipe.models[name], f"models.{name}"
    device = pick_device(given.recipe.compute.device).type
    samples = _open_samples(given, model, trainee)
    schedule = loss_schedule(model.train, len(samples))
    terms = _open_terms(schedule, "cpu" if elsewhere else device, path)
    network = _build(model, trainee, path)
    _demand_shareable(network, given.recipe.compute.processes, device, path)
    try:
        settings = train_settings(model.train, len(samples), device)
    except ValueError as error:
        raise StageError(f"{path}.train: {error}") from error
    return TrainingRun(name, trainee, samples, settings, schedule, terms, network)


def _demand_shareable(network: nn.Module, count: int, device: str, path: str) -> None:
    """Refuses more processes than there are GPUs, and networks that need whole batches."""
    import torch

    from sr_models.processes import demand_splittable

    if count == 1:
        return
    there = torch.cuda.device_count() if device == "cuda" else 1
    if device != "cpu" and count > there:
        raise StageError(
            f"compute.processes: {count}, but this machine has {there} {device} device(s), one for "
            f"each process: set it to {there}"
        )
    try:
        demand_splittable(network)
    except ValueError as error:
        raise StageError(f"{path}.network: {error}: set compute.processes to 1") from error


def _batches(
    samples: TrainingSamples, settings: TrainSettings
) -> Callable[[int], dict[str, Tensor]]:
    """Reads this process's share of batches straight into the memory that the device copies from.

    A share is a run of samples of the batch, so that sizes and draws are those of a smaller batch
    that stands further on.
    """
    from sr_models import processes
    from sr_models.training.devices import find_policy
    from sr_models.training.memory import BatchMemory

    memory = BatchMemory(find_policy(settings.device, settings.precision).pinned)
    count, rank = processes.count(), processes.rank()

    def batches(number: int) -> dict[str, Tensor]:
        place = number * count + rank, settings.batch // count, settings.crop, settings.seed
        return memory.tensors(samples.batch(*place, memory.empty))

    return batches


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


def _open_samples(given: Given, model: Model, trainee: Trainee) -> TrainingSamples:
    caches = trainee.caches
    stores = [
        DatasetStores(
            name=dataset,
            patches=PatchReader(given.input("silver/patches", dataset)),
            pairs=PairReader(given.input("gold/pairs", dataset)),
            caches={n: CacheReader(given.input(asset, dataset)) for n, asset in caches.items()},
        )
        for dataset in given.recipe.training_datasets(model.datasets)
    ]
    cached = trainee.features if caches else ()
    try:
        return TrainingSamples(
            stores, given.recipe.scale, cached, model.train.augment, trainee.fresh
        )
    except NoSamplesError as error:
        raise StageError(f"{error}: add images to the dataset or lower silver.min_side") from error
    except ValueError as error:
        raise StageError(str(error)) from error
