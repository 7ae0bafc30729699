"""Recipes: defaults, strictness, messages with line numbers, the shipped ones, the schema."""

import json
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sr_assets.lineage.added import register
from sr_assets.lineage.slices import slice_of
from sr_assets.recipe import reference
from sr_assets.recipe.loading import RecipeError, load_recipe, shipped_recipes
from sr_assets.recipe.models import Recipe
from sr_assets.recipe.training import Train

MINIMAL = """\
name: mine
datasets:
  photos:
    source: {kind: folder, path: pictures}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def error_of(folder: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text))
    return str(caught.value)


def test_minimal_recipe_has_the_documented_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert (recipe.scale, recipe.silver.min_side) == (4, 1024)
    assert (recipe.silver.patch_size, recipe.silver.stride) == (256, 256)
    source = recipe.datasets["photos"].source
    assert source.kind == "folder" and source.path == str(tmp_path / "pictures")


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_load(name: str) -> None:
    assert load_recipe(name).name == name.replace("-", "_")  # a name has no hyphen


def test_unknown_field_names_it_the_nearest_and_the_line(tmp_path: Path) -> None:
    message = error_of(tmp_path, MINIMAL + "silver:\n  min_side: 64\n  patchsize: 64\n")
    assert "recipe.yaml:7: unknown field silver.patchsize: did you mean `patch_size`?" in message


def test_unknown_field_deep_in_a_model(tmp_path: Path) -> None:
    text = MINIMAL + (
        "models:\n  m:\n    kind: plain\n    network: {architecture: SPAN}\n"
        "    train:\n      stepps: 5\n"
    )
    message = error_of(tmp_path, text)
    assert ":10: unknown field models.m.train.stepps: did you mean `steps`?" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", "no valid YAML"),
        ("just words", "a recipe is a mapping"),
        (MINIMAL + "scale: 5\n", ":5: scale: input should be 2, 3, 4 or 8, not 5"),
        (MINIMAL + "scale: 4\nscale: 2\n", ":6: scale stands twice"),
        ("name: mine\n", "datasets: field required"),
        (MINIMAL + "silver: {patch_size: 66}\n", "no multiple of scale 4"),
        (MINIMAL + "models: {m: {kind: gate}}\n", "needs at least one expert"),
        (MINIMAL + "models: {m: {kind: gaet}}\n", "models.m"),
        (MINIMAL + "seed: 2024-13-45\n", "no valid YAML: month must be"),
        (MINIMAL + "seed: !!bool perhaps\n", "no valid YAML"),
        (MINIMAL + "silver: &a {p: *a}\n", "a section holds itself"),
        (MINIMAL + "root: foo://x\n", "its root or a path cannot be used"),
        (MINIMAL + "root: ~nobody-here/x\n", "its root or a path cannot be used"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str) -> None:
    assert words in error_of(tmp_path, text)


def test_names_that_point_nowhere_are_listed_together(tmp_path: Path) -> None:
    text = MINIMAL + (
        "models:\n  s:\n    kind: student\n    network: {architecture: SPAN}\n"
        "    teachers: [nobody]\n    datasets: [elsewhere]\n"
    )
    message = error_of(tmp_path, text)
    assert "models.s.teachers: 'nobody'" in message and "models.s.datasets: 'elsewhere'" in message


def test_fields_that_do_not_fit_together_are_told_line_by_line(tmp_path: Path) -> None:
    text = MINIMAL + (
        "silver: {patch_size: 66}\nmodels:\n  m:\n    kind: plain\n"
        "    network: {architecture: SPAN}\n    train:\n      crop: 8\n"
        "      learning_rate: 1.0e-8\n      min_learning_rate: 1.0e-7\n"
    )
    lines = [line.split("recipe.yaml")[1] for line in error_of(tmp_path, text).splitlines()]
    assert lines == [
        ":5: silver.patch_size 66 is no multiple of scale 4",
        ":13: models.m.train.min_learning_rate 1e-07 is larger than learning_rate 1e-08",
    ]


def test_a_file_of_other_bytes_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: no valid YAML: 'utf-8'"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_model_may_train_on_an_added_dataset(tmp_path: Path) -> None:
    text = MINIMAL + f"root: {tmp_path}\n"
    added = load_recipe(write(tmp_path, text))
    register(added, "holiday", str(tmp_path), benchmark=False)
    text += (
        "models:\n  s:\n    kind: plain\n    network: {architecture: SPAN}\n"
        "    datasets: [photos, holiday]\n"
    )
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.models["s"].datasets == ("photos", "holiday")
    assert recipe.training_datasets() == ("photos",)
    taken = text.replace("photos", "holiday")  # the recipe's own section comes first
    source = load_recipe(write(tmp_path, taken)).datasets["holiday"].source
    assert source.kind == "folder" and source.path == str(tmp_path / "pictures")


def test_a_dataset_is_added_to_a_recipe_whose_fields_exclude_others(tmp_path: Path) -> None:
    """`epochs` stands instead of `steps`, `stages` instead of `loss`, a default warm-up is long."""
    recipe = load_recipe(
        write(
            tmp_path,
            MINIMAL + f"root: {tmp_path}\nmodels:\n"
            "  s: {kind: plain, network: {architecture: SPAN}, train: {steps: 10}}\n"
            "  t:\n    kind: plain\n    network: {architecture: SPAN}\n    train:\n"
            "      {epochs: 2, warmup: 0, validate_every: 1, stages: [{loss: {l2: 1}}]}\n",
        )
    )
    register(recipe, "holiday", str(tmp_path), benchmark=False)
    register(recipe, "beach", str(tmp_path), benchmark=True)
    again = load_recipe(tmp_path / "recipe.yaml")
    assert "holiday" in again.datasets and "beach" in again.benchmarks


def test_missing_file_lists_the_shipped_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="championship"):
        load_recipe(tmp_path / "none.yaml")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    field=st.text(string.ascii_lowercase, min_size=1, max_size=12),
    depth=st.sampled_from(["", "gold", "compute"]),
)
def test_any_unknown_field_is_an_error_with_its_line(
    tmp_path: Path, field: str, depth: str
) -> None:
    section = Recipe if not depth else Recipe.model_fields[depth].annotation
    if field in section.model_fields:
        return
    quoted = json.dumps(field)  # `no`, `on` and their like are not text in YAML unless quoted
    text = MINIMAL + (f"{quoted}: 1\n" if not depth else f"{depth}:\n  {quoted}: 1\n")
    message = error_of(tmp_path, text)
    assert f"unknown field {depth + '.' if depth else ''}{field}" in message
    assert f":{5 if not depth else 6}:" in message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
        max_leaves=8,
    )
)
def test_any_yaml_loads_or_is_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    folder = tmp_path_factory.mktemp("any")
    with pytest.raises(RecipeError):
        load_recipe(write(folder, yaml.safe_dump(value)))


def test_slice_leaves_out_what_cannot_change_a_result() -> None:
    flat = slice_of(Train(), "train")
    assert "train.steps" in flat and "train.loss.l1" in flat
    assert not {"train.log_every", "train.checkpoint_every", "train.keep_last"} & flat.keys()


def test_generated_pages_are_up_to_date(tmp_path: Path) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    reference.write(tmp_path)
    for name in ("recipe.schema.json", "recipe.md"):
        assert (docs / name).read_text() == (tmp_path / name).read_text(), (
            f"docs/{name} is old: python -m sr_assets.recipe.reference docs"
        )


def test_fields_of_degradation_steps_are_named_with_line_and_mend(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "name: t\ndatasets: {a: {source: {kind: folder, path: x}}}\n"
        "experts:\n  x: {source: {kind: hub, repo: a/b, file: 5}}\n"
        "gold:\n  degradation:\n    steps:\n      - {kind: resize}\n"
        "      - {kind: blur, isotropc_sigma: [1, 2]}\n"
    )
    with pytest.raises(RecipeError) as error:
        load_recipe(file)
    lines = str(error.value).splitlines()
    field = "gold.degradation.steps.1.isotropc_sigma"
    assert f"{file}:9: unknown field {field}: did you mean `isotropic_sigma`?" in lines
    assert any(line.startswith(f"{file}:4: experts.x.source.file: ") for line in lines)
