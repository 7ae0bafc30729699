"""The pydantic models of a recipe: every field, its default and its meaning.

Reading YAML, naming the line of a mistake and exporting the schema live in `loading.py` and
`reference.py`; nothing here touches a file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from sr_assets.recipe.strict import OUTSIDE_LINEAGE, Strict
from sr_assets.recipe.training import Train

DatasetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=60)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

#: Rows that every report has.
_RESERVED = {"bicubic", "mean", "convex", "hr", "lr"}


class FolderSource(Strict):
    """Images of a folder and everything below it."""

    kind: Literal["folder"]
    path: str = Field(description="Folder, relative to the recipe file or absolute.")
    include: tuple[str, ...] = Field(
        ("*",), description="Shell patterns; a file is taken when one matches its relative path."
    )


class BuiltinSource(Strict):
    """Photos that ship inside the installed scikit-image package."""

    kind: Literal["builtin"]
    images: tuple[str, ...] = Field(min_length=1, description="File names, such as astronaut.png.")


ImageSource = Annotated[FolderSource | BuiltinSource, Field(discriminator="kind")]


class Dataset(Strict):
    """Where the images of one dataset or benchmark come from."""

    source: ImageSource = Field(description="Where the images are.")
    licence: str | None = Field(None, description="Licence of the images, copied to model cards.")
    training: bool = Field(
        True, description="Whether models that name no datasets train on this one."
    )


class Bronze(Strict):
    """Limits on source images."""

    max_megapixels: float = Field(
        120.0, gt=0, description="Larger images are quarantined before they are decoded."
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


class Gold(Strict):
    """How LR is made from HR."""

    degradation: Literal["bicubic"] = Field("bicubic", description="Degradation preset.")
    variants: int = Field(1, ge=1, le=64, description="Degraded versions of each patch (K).")


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
        description="Also cache features, for fusions that learn from them: true for those after "
        "`conv_after_body`, or the path of another module whose output has the size of LR, such "
        "as `LR_conv`.",
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


class Network(Strict):
    """An architecture by its spandrel name and the arguments of its constructor."""

    architecture: str = Field(description="Such as SPAN, Compact, HAT, EDSR.")
    args: dict[str, Any] = Field(default_factory=dict, description="Constructor arguments.")


class ModelBase(Strict):
    """What every trained model has."""

    datasets: tuple[DatasetName, ...] | None = Field(
        None, description="Training datasets; all of the recipe when left out."
    )
    train: Train = Field(Train(), description="The training run.")
    licence: str | None = Field(None, description="Licence of the released weights.")


class PlainModel(ModelBase):
    """A network trained on gold pairs alone, without any cache."""

    kind: Literal["plain"]
    network: Network


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


class StudentModel(ModelBase):
    """A fast network trained from gold pairs and a teacher's cached output."""

    kind: Literal["student"]
    network: Network
    teacher: Name = Field(description="The model or expert whose cached SR it also learns from.")
    teacher_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the loss against the teacher; the rest is against HR.",
    )
    control: Name | None = Field(
        None,
        description="A plain model with the same network: what the student is without teacher.",
    )


Model = Annotated[PlainModel | GateModel | FusionModel | StudentModel, Field(discriminator="kind")]


class Evaluation(Strict):
    """How the report is made; the measuring convention itself is fixed."""

    crops: int = Field(3, ge=0, le=20, description="Side-by-side crops a benchmark image.")
    crop_size: int = Field(96, ge=16, description="Side of such a crop (HR px).")


class Export(Strict):
    """Files that an export writes."""

    onnx: bool = Field(True, description="Also write ONNX fp32 with dynamic height and width.")


class Release(Strict):
    """What is released."""

    models: tuple[Name, ...] | None = Field(
        None, description="Models to release; every fusion and student when left out."
    )


class Compute(Strict):
    """Where and how fast; nothing here can change a result."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where networks run; auto takes the best that is there."
    )
    workers: int = Field(2, ge=1, le=256, description="Threads for decoding and degrading.")


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
    evaluation: Evaluation = Field(Evaluation(), description="How the report is made.")
    export: Export = Field(Export(), description="Files of an export.")
    release: Release = Field(Release(), description="What is released.")
    compute: Compute = Field(
        Compute(), description="Where and how fast.", json_schema_extra=OUTSIDE_LINEAGE
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

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        problems = list(_cross_check(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _cross_check(recipe: Recipe) -> list[str]:
    """Every name that points at something which is not there, each with the mend."""
    problems: list[str] = []
    both = set(recipe.datasets) & set(recipe.benchmarks)
    if both:
        problems.append(f"{sorted(both)} is a dataset and a benchmark: rename one")
    taken = _RESERVED & {*recipe.experts, *recipe.models}
    if taken:
        problems.append(f"{sorted(taken)} is a row of every report: rename that expert or model")
    both = set(recipe.experts) & set(recipe.models)
    if both:
        problems.append(f"{sorted(both)} is an expert and a model: rename one")
    if recipe.silver.patch_size % recipe.scale:
        problems.append(
            f"silver.patch_size {recipe.silver.patch_size} is no multiple of scale {recipe.scale}"
        )

    def known(path: str, name: str, names: object) -> None:
        options = sorted(names)  # type: ignore[call-overload]
        if name not in options:
            problems.append(f"{path}: {name!r} is not one of {options}")

    for name, model in recipe.models.items():
        path = f"models.{name}"
        for dataset in model.datasets or ():
            known(f"{path}.datasets", dataset, recipe.datasets)
        if model.train.crop * recipe.scale > recipe.silver.patch_size:
            problems.append(
                f"{path}.train.crop {model.train.crop} is larger than an LR patch "
                f"({recipe.silver.patch_size // recipe.scale})"
            )
        problems.extend(_augment_problems(f"{path}.train", recipe, model))
        if model.train.min_learning_rate > model.train.learning_rate:
            problems.append(
                f"{path}.train.min_learning_rate {model.train.min_learning_rate} is larger than "
                f"learning_rate {model.train.learning_rate}"
            )
        if isinstance(model, GateModel | FusionModel):
            if not recipe.experts:
                problems.append(f"{path}: a fusion needs at least one expert in `experts`")
            listed = model.experts if isinstance(model.experts, tuple) else ()
            for expert in listed:
                known(f"{path}.experts", expert, recipe.experts)
        if isinstance(model, StudentModel):
            fusions = [n for n, m in recipe.models.items() if n != name]
            known(f"{path}.teacher", model.teacher, [*recipe.experts, *fusions])
            if model.control is not None:
                plain = [n for n, m in recipe.models.items() if isinstance(m, PlainModel)]
                known(f"{path}.control", model.control, plain)
                control = recipe.models.get(model.control)
                if isinstance(control, PlainModel) and control.network != model.network:
                    problems.append(f"{path}.control: {model.control!r} has another network")
    for name in recipe.release.models or ():
        known("release.models", name, recipe.models)
    if _teacher_cycle(recipe):
        problems.append(
            f"models: {' -> '.join(_teacher_cycle(recipe))} teach each other in a circle"
        )
    return problems


def _augment_problems(path: str, recipe: Recipe, model: Model) -> list[str]:
    """Augmentation that cannot be done: no room for a crop, or caches that would not follow."""
    problems: list[str] = []
    train, patch = model.train, recipe.silver.patch_size // recipe.scale
    margin = train.augment.margin
    if train.crop <= patch < train.crop + 2 * margin:
        problems.append(
            f"{path}.augment.margin {margin} leaves {max(0, patch - 2 * margin)} px of an LR patch "
            f"({patch}), less than {path}.crop {train.crop}"
        )
    live = isinstance(model, FusionModel) and model.experts == "live"
    if train.augment.photometric and not live and not isinstance(model, PlainModel):
        mend = ", or train the fusion with `experts: live`" if model.kind == "fusion" else ""
        problems.append(
            f"{path}.augment.{train.augment.photometric[0]}: this model learns from cached "
            "pictures, which would not follow the changed LR (networks are not equivariant): "
            f"set it to 0{mend}"
        )
    return problems


def _teacher_cycle(recipe: Recipe) -> list[str]:
    for start in recipe.models:
        seen, name = [start], start
        while isinstance(model := recipe.models.get(name), StudentModel):
            name = model.teacher
            if name in seen:
                return [*seen, name]
            seen.append(name)
    return []
