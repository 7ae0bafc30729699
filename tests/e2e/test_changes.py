"""What a change of the recipe, the code or the photos makes stale, and what it leaves alone."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from tiny_project import Project, picture

import sr_assets
import sr_models

EXPERTS = ("edsr", "compact")


def test_the_steps_of_a_student_touch_only_what_hangs_below_it(project: Project) -> None:
    recipe = project.recipe()
    recipe["models"]["student"]["train"]["steps"] += 10
    project.write_recipe(recipe)
    why = project.to_make()
    assert set(why) == {
        "model/student/checkpoint",
        "model/student/evaluation[bench]",
        "model/student/cost",
        "model/student/export",
        "model/student/release",
        "evaluation/leaderboard",
    }
    assert why["model/student/checkpoint"] == "recipe models.student.train.steps 220 -> 230"
    assert why["model/student/export"] == "model/student/checkpoint is stale"


def test_fields_that_cannot_change_a_result_make_nothing_stale(project: Project) -> None:
    recipe = project.recipe()
    recipe["compute"] = {"device": "auto", "workers": 2}
    recipe["experts"]["edsr"]["batch"] = 4
    recipe["models"]["student"]["train"] |= {"log_every": 3, "checkpoint_every": 7}
    project.write_recipe(recipe)
    assert project.to_make() == {}


def test_comments_docstrings_and_layout_of_the_code_make_nothing_stale(
    project: Project, tmp_path: Path
) -> None:
    edited = _with_own_code(project, tmp_path)
    for file in edited.import_path.glob("sr_models/**/*.py"):  # type: ignore[union-attr]
        text = file.read_text()
        if "from __future__" not in text:
            text = f'"""Another docstring."""\n{text}'
        file.write_text(f"# A comment above.\n\n\n{text}\n\n# And one below.\n")
    _edit(
        edited,
        "sr_models/degradations/bicubic.py",
        lambda text: text.replace("\n_REACH = 2", "\n_REACH = (\n    2  # pixels\n)").replace(
            '"""Reduces images', '"""Makes images smaller'
        ),
    )
    status = edited.status()
    assert {(row["state"], row["why"]) for row in status.values()} == {("fresh", "")}


def test_a_change_of_the_degradation_starts_at_gold_and_is_named(
    project: Project, tmp_path: Path
) -> None:
    edited = _with_own_code(project, tmp_path)
    _edit(
        edited,
        "sr_models/degradations/bicubic.py",
        lambda text: text.replace("\n_REACH = 2", "\n_REACH = 3"),
    )
    status = edited.status()
    gold = {name: row for name, row in status.items() if name.startswith("gold/")}
    assert len(gold) == 2
    for row in gold.values():
        assert row["state"] == "stale" and row["why"] == "sr_models.degradations.bicubic changed"
    assert {name for name, row in status.items() if row["state"] == "fresh"} == {
        *(f"bronze/images[{s}]" for s in ("photos", "other", "bench")),
        "bronze/benchmarks",
        *(
            f"{asset}[{d}]"
            for asset in ("bronze/overlap", "silver/patches")
            for d in ("photos", "other")
        ),
        *(f"expert/{e}/{what}" for e in EXPERTS for what in ("weights", "cost")),
    }
    assert status["expert/edsr/cache[photos]"]["why"] == "gold/pairs[photos] is stale"


def test_a_new_photo_is_followed_by_all_that_is_made_from_it_alone(
    project: Project, sources: Path
) -> None:
    photos = project.folder / "photos"
    shutil.copytree(sources / "photos", photos)
    recipe = project.recipe()
    recipe["datasets"]["photos"]["source"]["path"] = "photos"
    project.write_recipe(recipe)
    # the same photos elsewhere: they are looked at again, and the work stops there
    assert project.srd("build").stdout.splitlines()[-1] == "Made 1 outputs."
    before = project.status()
    written = _written(before)

    Image.fromarray(picture(30)).save(photos / "new.png")
    why = project.to_make()
    assert why["bronze/images[photos]"] == "new.png added"
    follow = {
        *("bronze/images[photos]", "bronze/overlap[photos]"),
        *("silver/patches[photos]", "gold/pairs[photos]"),
        *(f"expert/{e}/cache[photos]" for e in EXPERTS),
        *("model/fusion/cache[photos]", "model/fusion/cache[other]"),  # the fusion itself changes
        *(
            f"model/{m}/{what}"
            for m in ("fusion", "student", "alone")
            for what in ("checkpoint", "evaluation[bench]", "cost", "export", "release")
        ),
        *("evaluation/baselines[bench]", "evaluation/leaderboard"),
    }
    assert set(why) == follow

    project.srd("build")
    after = project.status()
    assert {row["state"] for row in after.values()} == {"fresh"}
    untouched = set(after) - follow
    assert untouched >= {f"{a}[other]" for a in ("bronze/images", "silver/patches", "gold/pairs")}
    assert untouched >= {f"expert/{e}/cache[other]" for e in EXPERTS}
    for name in untouched:
        assert after[name] == before[name], name
    assert {n: t for n, t in _written(after).items() if n in untouched} == {
        n: t for n, t in written.items() if n in untouched
    }
    for name in ("silver/patches[photos]", "gold/pairs[photos]", "model/student/checkpoint"):
        assert after[name]["data_version"] != before[name]["data_version"]


def _with_own_code(project: Project, tmp_path: Path) -> Project:
    """The project, run from copies of the two packages that a test may edit."""
    code = tmp_path / "code"
    for package in (sr_models, sr_assets):
        (folder,) = package.__path__
        shutil.copytree(
            folder, code / Path(folder).name, ignore=shutil.ignore_patterns("__pycache__")
        )
    command = (sys.executable, "-W", "ignore", "-c", "from sr_assets.cli import main; main()")
    return Project(project.folder, command, code)


def _edit(project: Project, name: str, change: Callable[[str], str]) -> None:
    assert project.import_path is not None
    file = project.import_path / name
    before = file.read_text()
    after = change(before)
    assert after != before
    file.write_text(after)


def _written(status: dict[str, dict[str, object]]) -> dict[str, int]:
    """When the marker of each output was written."""
    return {n: (Path(str(r["path"])) / "srd.json").stat().st_mtime_ns for n, r in status.items()}
