"""What a training section of a recipe refuses, and what its times mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sr_assets.assets.training_plan import loss_schedule, steps_per_epoch, train_settings
from sr_assets.recipe.loading import RecipeError, load_recipe
from sr_assets.recipe.training import Train

L1: dict[str, Any] = {"l1": 1.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": [{"until": 5, "loss": L1}, {"until": 3, "loss": L1}]}, "stages.1.until: 3 is"),
        ({"stages": [{"loss": L1}, {"loss": L1}]}, "stages.0.until: only the last"),
        ({"steps": 9, "stages": [{"until": 5, "loss": L1}]}, "stages.0.until: the last stage ends"),
        ({"steps": 9, "stages": [{"until": 9, "loss": L1}, {"loss": L1}]}, "stages.1: it would"),
        ({"stages": [{"loss": {"l1": 0}}]}, "stages.0.loss: no loss term"),
        ({"loss": {"l1": 0}}, "loss: no loss term"),
        ({"loss": L1, "stages": [{"loss": L1}]}, "loss: the stages have losses"),
        ({"optimizer": "adamw_schedule_free"}, "schedule: adamw_schedule_free averages"),
        (
            {"optimizer": "adan_schedule_free", "schedule": "cosine_restarts"},
            "schedule: adan_schedule_free averages",
        ),
        ({"betas": [0.9, 0.9, 0.9]}, "betas: adamw takes 2 numbers, not 3"),
        ({"optimizer": "adan", "betas": [0.9, 0.9]}, "betas: adan takes 3 numbers, not 2"),
        ({"betas": [0.9, 1.0]}, "betas: "),
        (
            {"optimizer": "adam_schedule_free", "schedule": "constant", "betas": [0, 0.9]},
            "betas: the first must be above 0",
        ),
        ({"steps": 9, "warmup": 10}, "warmup: 10 is longer than the run \\(9 steps\\)"),
        ({"warmup_from": 1.0}, "warmup_from: 1.0 is above learning_rate"),
        ({"epochs": 5}, "warmup: it counts epochs"),
        ({"epochs": 5, "warmup": 1}, "validate_every: it counts epochs"),
        ({"epochs": 5, "steps": 9}, "steps: the run has a length in epochs"),
        ({"epochs": 5, "warmup": 6, "validate_every": 1}, "warmup: 6 is longer .*5 epochs"),
        ({"steps": 9, "milestones": [5, 10]}, "milestones: 10 is after the end"),
        ({"milestones": [0]}, "milestones: 0 is before the first"),
    ],
)
def test_what_cannot_be_meant_is_one_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        Train.model_validate(fields)
    assert len(caught.value.errors()) == 1
    assert "\n" not in caught.value.errors()[0]["msg"]


def test_what_can_be_meant_is_let_through() -> None:
    Train(steps=3)  # a short trial, with the warm-up of a long run
    Train(steps=9, warmup=9)
    stages = [{"until": 5, "loss": L1}, {"until": 9, "loss": L1}]
    Train.model_validate({"steps": 9, "stages": stages})
    for name in ("adamw_schedule_free", "adam_schedule_free", "adan_schedule_free"):
        Train.model_validate({"optimizer": name, "schedule": "constant"})
    Train(optimizer="adan", betas=(0.98, 0.92, 0.99))


def test_the_documents_schedule() -> None:
    """200 epochs of 800 images taken 20 times, batch 32: 500 steps in an epoch."""
    swt, fft = {"swt": 0.2, "fft_log": 0.05}, {"swt": 0.25, "fft_log": 0.1, "ssim": 0.05}
    train = Train.model_validate(
        {
            "epochs": 200, "batch": 16, "accumulate": 2, "warmup": 5, "warmup_from": 5e-7,
            "learning_rate": 1e-4, "min_learning_rate": 5e-8, "schedule": "cosine_restarts",
            "validate_every": 1, "milestones": [50, 100, 150, 200],
            "stages": [
                {"until": 80, "loss": {}},
                {"until": 150, "loss": {"l1": 0.75, **swt}},
                {"until": 200, "loss": {"l1": 0.6, **fft}},
            ],
        }
    )  # fmt: skip
    settings = train_settings(train, 16_000, "cpu")
    assert (settings.steps, settings.warmup, settings.validate_every) == (100_000, 2500, 500)
    assert (settings.restart_first, settings.restart_factor) == (25_000, 2)
    assert settings.milestones == (25_000, 50_000, 75_000, 100_000)
    assert settings.checkpoint_every == 500, "it counts steps in any case"
    schedule = loss_schedule(train, 16_000)
    assert schedule.ends == (40_000, 75_000)
    edges = (0, 39_999, 40_000, 74_999, 75_000, 99_999)
    assert [schedule.stage(step) for step in edges] == [0, 0, 1, 1, 2, 2]
    assert schedule.names == ("l1", "swt", "fft_log", "ssim")


def test_times_in_steps_stay() -> None:
    train = Train(steps=9, warmup=2, validate_every=3, milestones=(4,))
    settings = train_settings(train, 1000, "cpu")
    assert (settings.steps, settings.warmup, settings.validate_every) == (9, 2, 3)
    assert settings.milestones == (4,) and settings.device == "cpu"


@given(st.integers(1, 10**6), st.integers(1, 64), st.integers(1, 8))
def test_an_epoch_sees_every_sample(samples: int, batch: int, accumulate: int) -> None:
    steps = steps_per_epoch(samples, Train(batch=batch, accumulate=accumulate))
    assert (steps - 1) * batch * accumulate < samples <= steps * batch * accumulate


RECIPE = """\
name: mine
datasets:
  photos: {{source: {{kind: folder, path: photos}}}}
models:
  m:
    kind: plain
    network: {{architecture: Compact}}
    train: {train}
"""


def test_the_file_to_start_from_lies_beside_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    for given_path, expected in (
        ("weights/a.pth", tmp_path / "weights" / "a.pth"),
        ("/somewhere/a.pth", Path("/somewhere/a.pth")),
        ("~/a.pth", Path.home() / "a.pth"),
    ):
        file.write_text(RECIPE.format(train=f"{{start_from: {given_path}}}"))
        assert load_recipe(file).models["m"].train.start_from == str(expected)
    file.write_text(RECIPE.format(train="{start_from: 3}"))
    with pytest.raises(RecipeError, match=r"start_from"):
        load_recipe(file)


def test_a_mistake_names_its_line_and_its_field(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(train="{steps: 9, warmup: 10}"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml:8: models\.m\.train: warmup: 10 is long"):
        load_recipe(file)
