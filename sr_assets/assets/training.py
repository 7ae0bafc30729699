"""One training run as a stage: samples in, a checkpoint output, curves and metadata out.

The run of the loop is `training_run.py`, several processes of it are `training_together.py`; what
the kinds of models differ in comes as a `Trainee`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sr_assets.assets.training_reports import (
    curves,
    require_tracker,
    take_curves,
    tracked,
    validation_log,
)
from sr_assets.assets.training_run import open_run
from sr_assets.assets.training_together import train_together
from sr_assets.lineage.stage import Job, StageContext
from sr_assets.stores.checkpoint import write_checkpoints, write_model
from sr_assets.stores.samples import Fresh

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sr_models.losses.registry import LossTerms


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


def train_model(context: StageContext, name: str, trainee: Trainee, share: Job) -> dict[str, Any]:
    """Trains one model and writes what it is and how it came about.

    Files: `model.safetensors`, `model.json`, `history.json`, TensorBoard's, and of the best steps
    and the milestones the averaged weights, `checkpoints/step-<step>.safetensors` (and `.pth`).

    A killed run goes on from its last checkpoint in the output's work folder, with as many
    processes as `compute.processes` says then.

    Args:
        context: of the checkpoint's stage.
        name: of the model.
        trainee: what its kind differs in.
        share: the same training as one of several processes.

    Returns:
        Metadata: parameters, steps, the step that was chosen, its validation PSNR-Y (see
        `validation_psnr`) and that of the rivals on the same images, and `data_wait`, the share of
        the time of steps that was waiting for data.

    Raises:
        StageError: there is nothing to train or validate on, something that the recipe asks for is
            not on this machine, or the training went astray.
    """
    from sr_models.export.fusing import fused_copy
    from sr_models.export.weights import running_parameters
    from sr_models.training.waiting import waiting_line

    recipe, path = context.recipe, f"models.{name}"
    model, count = recipe.models[name], recipe.compute.processes
    require_tracker(model, path)
    run = open_run(context.given, name, trainee, elsewhere=count > 1)
    network, steps = run.network, run.settings.steps
    parameters = running_parameters(fused_copy(network))
    context.log(
        f"{name}: {parameters:,} parameters, {len(run.samples)} samples, "
        f"{steps} steps on {run.settings.device}" + (f" in {count} processes" if count > 1 else "")
    )
    if described := trainee.describe(network):
        context.log(f"{name}: {described}")

    def say(line: str) -> None:
        context.log(f"{name}: {line}")

    with (
        context.progress(f"training {name}", steps, "steps") as advance,
        tracked(context, name, model, path) as track,
    ):
        draw, validated = curves(context.observe, steps), validation_log(say)

        def report(step: int, numbers: Mapping[str, float]) -> None:
            draw(step, numbers)
            track(step, numbers)
            validated(step, numbers)

        work = context.output.work
        if count > 1:
            data_wait = train_together(context, share, report, advance, say)
            # They have ended with its last checkpoint, which is all that is taken up here.
            result = run.train(work, lambda step, numbers: None, lambda n: None, say)
        else:
            result = run.train(work, report, advance, say)
            data_wait = result.data_wait

    say(waiting_line(data_wait))
    network.load_state_dict(result.state, strict=True)
    network.eval()
    psnr = run.validated(lambda b: {name: trainee.forward(network, b), **trainee.rivals(b)})
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
    take_curves(context)
    return {
        "parameters": parameters,
        "psnr_y": own,
        "step": result.step,
        "steps": result.steps,
        "data_wait": round(data_wait, 4),
        **{f"psnr_y_{rival}": value for rival, value in psnr.items()},
    }
