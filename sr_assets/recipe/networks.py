"""The sections of `models:`: networks to train, and what each kind learns from.

Training runs are `training.py`; everything else of a recipe, and how its parts fit, is `models.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sr_assets.recipe.perceptual import Perceptual
from sr_assets.recipe.strict import DatasetName, Name, Strict
from sr_assets.recipe.training import Train


class Network(Strict):
    """An architecture by its name and the arguments of its constructor."""

    architecture: str = Field(
        description="One of ours, such as paragonsr2_realtime, or of spandrel's, such as SPAN; "
        "docs/students.md lists them."
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Constructor arguments.")


class ModelBase(Strict):
    """What every trained model has."""

    datasets: tuple[DatasetName, ...] | None = Field(
        None, description="Training datasets; all of the recipe when left out."
    )
    train: Train = Field(Train(), description="The training run.")
    licence: str | None = Field(None, description="Licence of the released weights.")
    perceptual: Perceptual | None = Field(
        None,
        description="Also refine its pictures of benchmarks by diffusion; nothing when left out.",
    )


class UpscalerModel(ModelBase):
    """What every model has that enlarges LR without any expert's picture."""

    network: Network
    quantisation_aware: bool = Field(
        False,
        description="Train with weights and activations rounded to int8; of networks with branches "
        "the fused form, by `fused_init: true` in `network.args`.",
    )
    kept_in_float: tuple[str, ...] = Field(
        (),
        description="With `quantisation_aware`, convolutions that are not rounded, by the names of "
        "their modules, such as `conv_cat`; those that lose most, see docs/int8.md.",
    )


class PlainModel(UpscalerModel):
    """A network trained on gold pairs alone, without any cache."""

    kind: Literal["plain"]
    online: bool = Field(
        False,
        description="Draw a new degradation of a patch each time it is seen, by "
        "`gold.degradation`, instead of its K variants.",
    )


class GateModel(ModelBase):
    """Fusion, first form: per-pixel softmax weights over the experts and a small residual."""

    kind: Literal["gate"]
    experts: tuple[Name, ...] | None = Field(None, description="All experts when left out.")
    width: int = Field(32, ge=4, description="Channels of the gate.")
    depth: int = Field(3, ge=1, description="Convolutions of the gate's trunk.")


class Phases(Strict):
    """Phases of a fusion, each of which can be switched off for an ablation."""

    frequency: bool = Field(True, description="2: nine frequency bands of LR guide the fusion.")
    cross_band: bool = Field(True, description="3: attention across bands, large-kernel attention.")
    collaboration: bool = Field(True, description="4: experts' features learn from each other.")
    hierarchy: bool = Field(True, description="5: weights at 1/4, 1/2 and full resolution.")
    selection: bool = Field(True, description="6: experts chosen per pixel by difficulty.")
    refinement: bool = Field(True, description="7: deep refinement and the global residual.")
    edges: bool = Field(True, description="7: Laplacian pyramid edge enhancement.")


class FusionModel(ModelBase):
    """The seven-phase frequency-guided fusion of frozen experts."""

    kind: Literal["fusion"]
    experts: Literal["live"] | tuple[Name, ...] | None = Field(
        None,
        description="Trained from their caches: all when left out. `live` runs all experts anew in "
        "every step instead.",
    )
    phases: Phases = Field(Phases(), description="Switches for ablations.")
    wavelet: str = Field("haar", description="Any discrete wavelet of PyWavelets.")
    guidance_width: int = Field(64, ge=8, multiple_of=8, description="Channels of the guidance.")
    common_width: int = Field(
        128, ge=8, multiple_of=8, description="Channels that experts' features are brought to."
    )
    width: int = Field(128, ge=8, description="Channels of the refinement.")
    depth: int = Field(6, ge=2, description="Convolutions of the refinement.")


class FeatureDistillation(Strict):
    """Learning from experts' cached features: how alike a picture's places are to one another."""

    experts: tuple[Name, ...] = Field(
        min_length=1, description="Experts with `features`, whose caches are read."
    )
    weight: float = Field(
        gt=0, description="Factor of the L1 of affinities (He et al. 2020, FAKD), beside the rest."
    )
    module: str | None = Field(
        None,
        description="Module of the student whose output is compared, of the size of LR; the "
        "architecture's own last features when left out.",
    )


class StudentModel(UpscalerModel):
    """A fast network trained from gold pairs and what teachers' caches hold."""

    kind: Literal["student"]
    teachers: tuple[Name, ...] | None = Field(
        None,
        min_length=1,
        description="Models and experts whose cached SR it also learns from; the recipe's fusion "
        "when left out.",
    )
    teaching: Literal["each", "mean"] = Field(
        "each", description="Several teachers: the mean of their losses, or one against their mean."
    )
    teacher_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the loss against the teachers; the rest is against HR.",
    )
    follow: Literal["always", "where_closer"] = Field(
        "always",
        description="Which pixels of a teacher count: all, or those where it is closer to HR than "
        "the student is.",
    )
    features: FeatureDistillation | None = Field(None, description="Feature distillation.")
    control: bool = Field(
        False,
        description="Also train `<name>_control`: the same network and training without teacher.",
    )

    @field_validator("teachers", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


Model = Annotated[PlainModel | GateModel | FusionModel | StudentModel, Field(discriminator="kind")]


def control_name(student: str) -> str:
    """What the control of a student is called."""
    return f"{student}_control"


def controls(models: Mapping[str, Model]) -> dict[str, PlainModel]:
    """The controls that students ask for: the same networks and training without a teacher."""
    students = {n: m for n, m in models.items() if isinstance(m, StudentModel) and m.control}
    shared = UpscalerModel.model_fields.keys() - {"perceptual"}
    return {
        control_name(name): PlainModel(
            kind="plain", **{field: getattr(m, field) for field in sorted(shared)}
        )
        for name, m in students.items()
    }
