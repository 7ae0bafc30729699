"""The pydantic models of a recipe: every field, its default and its meaning.

Reading YAML, naming the line of a mistake and exporting the schema live in `loading.py` and
`reference.py`; nothing here touches a file.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sr_assets.recipe.agreement import disagreements
from sr_assets.recipe.automation import Automation
from sr_assets.recipe.evaluation import Evaluation
from sr_assets.recipe.export import Export
from sr_assets.recipe.gold import Gold
from sr_assets.recipe.networks import (
    FusionModel,
    GateModel,
    Model,
    StudentModel,
    control_name,
    controls,
)
from sr_assets.recipe.release import Release
from sr_assets.recipe.sources import Dataset
from sr_assets.recipe.strict import OUTSIDE_LINEAGE, DatasetName, Name, Sha256, Strict


class Bronze(Strict):
    """Limits on source images."""

    max_megapixels: float = Field(
        120.0, gt=0, description="Larger images are quarantined before they are decoded."
    )
    near_copy: float = Field(
        0.15,
        ge=0,
        le=0.15,
        description="Images this near to one of a benchmark are not trained on; 0 leaves out equal "
        "files only, for drawings and slides, which are all alike (docs/images.md).",
    )


class Silver(Strict):
    """How HR patches are cut."""

    min_side: int = Field(1024, ge=16, description="Images with a shorter side are left out (px).")
    patch_size: int = Field(256, ge=16, description="Side of an HR patch (px).")
    stride: int = Field(256, ge=1, description="Step between training patches (px).")
    min_detail: float = Field(
        0.0,
        ge=0,
        description="Patches whose mean |Laplacian| of luma (0..255) is lower are left out.",
    )
    validation_share: float = Field(
        0.1, gt=0, lt=1, description="Share of source images held out for validation, at least one."
    )


class BuiltinWeights(Strict):
    """Weights that ship inside this package."""

    kind: Literal["builtin"]
    name: str = Field(description="File stem, such as hat_demo_x4.")


class FileWeights(Strict):
    """Weights in a local file that spandrel can load."""

    kind: Literal["file"]
    path: str = Field(description="File, relative to the recipe file or absolute.")


class HubWeights(Strict):
    """Weights in a Hugging Face model repository."""

    kind: Literal["hub"]
    repo: str = Field(description="owner/name")
    file: str = Field(description="File inside the repository.")
    revision: str = Field("main", description="Branch, tag or commit.")


WeightSource = Annotated[BuiltinWeights | FileWeights | HubWeights, Field(discriminator="kind")]


class Expert(Strict):
    """One frozen SR network."""

    source: WeightSource = Field(description="Where the weights are.")
    sha256: Sha256 | None = Field(None, description="The file must have this digest.")
    architecture: str | None = Field(
        None, description="spandrel architecture name that must be detected, such as HAT."
    )
    features: bool | str = Field(
        False,
        description="Features that models may learn from: true for those after "
        "`conv_after_body`, or the path of another module whose output has the size of LR, such "
        "as `LR_conv`. They are cached once a model of the recipe needs them.",
    )
    cache: Literal["lossless", "default", "small"] = Field(
        "default",
        description="How the cache stores SR and features: `default` in integers (SR in steps of "
        "1/2040, features in 8 bits), `small` the same packed better and read slower, `lossless` "
        "in fp32.",
    )
    dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="Arithmetic of the forward pass; fp16 overflows in these networks."
    )
    licence: str | None = Field(None, description="Licence of the weights.")
    batch: int = Field(
        8,
        ge=1,
        description="LR patches at a time; halved on out-of-memory.",
        json_schema_extra=OUTSIDE_LINEAGE,
    )


class Compute(Strict):
    """Where and how fast; nothing here can change a result."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where networks run; auto takes the best that is there."
    )
    workers: int = Field(2, ge=1, le=256, description="Threads for decoding and degrading.")
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share a training, each with a GPU of its own, or on the CPU.",
    )
    executor: Literal["local", "ray"] = Field(
        "local",
        description="What computes gold, expert caches and evaluations: the process of the run, or "
        "Ray's workers, on the cluster of `RAY_ADDRESS` or on this machine (docs/scale.md).",
    )


class Recipe(Strict):
    """One project: datasets, experts, models, evaluation, exports."""

    name: Name = Field(description="Name of the project.")
    root: str | None = Field(
        None,
        description="Folder of all outputs; data/<name> when left out.",
        json_schema_extra=OUTSIDE_LINEAGE,
    )
    scale: Literal[2, 3, 4, 8] = Field(4, description="Upscaling factor.")
    seed: int = Field(42, description="Seed of splits and degradations.")
    datasets: dict[DatasetName, Dataset] = Field(
        min_length=1, description="Image sets for training."
    )
    benchmarks: dict[DatasetName, Dataset] = Field(
        default_factory=dict, description="Image sets for evaluation only."
    )
    bronze: Bronze = Field(Bronze(), description="Limits on source images.")
    silver: Silver = Field(Silver(), description="How HR patches are cut.")
    gold: Gold = Field(Gold(), description="How LR is made.")
    experts: dict[Name, Expert] = Field(default_factory=dict, description="Frozen SR networks.")
    models: dict[Name, Model] = Field(default_factory=dict, description="Networks to train.")
    evaluation: Evaluation = Field(
        Evaluation(), description="What is measured, and how the report is made."
    )
    export: Export = Field(Export(), description="Files of an export.")
    release: Release = Field(Release(), description="What is released.")
    compute: Compute = Field(
        Compute(), description="Where and how fast.", json_schema_extra=OUTSIDE_LINEAGE
    )
    automation: Automation = Field(
        Automation(),
        description="When work starts by itself, and how failures are told.",
        json_schema_extra=OUTSIDE_LINEAGE,
    )

    def training_datasets(self, names: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """The datasets to train on: `names`, each once, or all that are meant for training."""
        return tuple(dict.fromkeys(names or (n for n, d in self.datasets.items() if d.training)))

    def experts_of(self, name: str) -> tuple[str, ...]:
        """The experts whose pictures model `name` fuses, in its order; none for other models."""
        model = self.models[name]
        if not isinstance(model, GateModel | FusionModel):
            return ()
        if model.experts is None or model.experts == "live":
            return tuple(self.experts)
        return tuple(dict.fromkeys(model.experts))

    def features_of(self, name: str) -> tuple[str, ...]:
        """Those of `experts_of` whose features the model learns from."""
        model = self.models[name]
        if not isinstance(model, FusionModel) or not model.phases.collaboration:
            return ()
        return tuple(e for e in self.experts_of(name) if self.experts[e].features)

    def expert_as_cached(self, name: str) -> Expert:
        """Expert `name`, with its features only where a model of the recipe learns from them."""
        wanted = any(
            name in self.features_of(model)
            or (isinstance(m, StudentModel) and m.features and name in m.features.experts)
            for model, m in self.models.items()
        )
        expert = self.experts[name]
        return expert if wanted else expert.model_copy(update={"features": False})

    def teachers_of(self, name: str) -> tuple[str, ...]:
        """The models and experts whose pictures model `name` learns from; none for other kinds."""
        model = self.models[name]
        if not isinstance(model, StudentModel):
            return ()
        return tuple(dict.fromkeys(model.teachers or self._fusions()[:1]))

    def control_of(self, name: str) -> str | None:
        """The model that is trained like student `name`, but without a teacher, where it is."""
        model = self.models[name]
        return control_name(name) if isinstance(model, StudentModel) and model.control else None

    def _fusions(self) -> tuple[str, ...]:
        """The fusions, the full ones before the gates."""
        kinds = (FusionModel, GateModel)
        return tuple(n for kind in kinds for n, m in self.models.items() if isinstance(m, kind))

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        problems = disagreements(self)
        if problems:
            raise ValueError("; ".join(problems))
        self.models.update(controls(self.models))
        return self
