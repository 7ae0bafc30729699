"""`srd explain` on a project whose LR is degraded at random, from a terminal's point of view."""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_project import Project, tiny_recipe

PATCH = 32


@pytest.fixture(scope="module")
def damaged(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three `realworld` versions of each patch of one dataset; the other has not been made."""
    project = Project(tmp_path_factory.mktemp("damaged"))
    recipe = tiny_recipe(sources)
    recipe["gold"] = {"degradation": "realworld", "variants": 3}
    project.write_recipe(recipe)
    project.srd("build", "gold/pairs[photos]")
    return project


def test_a_sample_is_explained_in_words_and_in_a_picture(damaged: Project) -> None:
    said = damaged.srd("explain", "photos", "5", "-k", "2", "-o", "steps.png").stdout
    lines = said.splitlines()
    assert lines[0] == "photos patch 5, version 2 of 3: realworld, ×2"
    assert lines[1].startswith("from photos") and ".png at y " in lines[1]
    assert "Made again from the stored numbers: the same bytes." in lines
    assert lines[-1] == "picture: steps.png"
    found = damaged.srd_json("explain", "photos", "5", "--variant", "2")
    numbered = [line for line in lines if line[:3].strip().isdigit()]
    assert len(numbered) == len(found["steps"]) >= 3
    for line, step in zip(numbered, found["steps"], strict=True):
        assert step["words"] in line and line.endswith(f"{step['width']}×{step['height']} px")
    with Image.open(damaged.folder / "steps.png") as sheet:
        assert sheet.width <= 1250 and sheet.height > 256 * 2


def test_versions_of_a_patch_differ_and_each_is_the_stored_one(damaged: Project) -> None:
    found = [damaged.srd_json("explain", "photos", "0", "-k", str(k)) for k in range(3)]
    assert all(f["same_bytes"] and f["changed"] == [] and f["variants"] == 3 for f in found)
    assert len({f["lr"]["sha256"] for f in found}) == 3
    assert len({f["hr"]["sha256"] for f in found}) == 1
    assert all((f["lr"]["height"], f["hr"]["height"]) == (PATCH // 2, PATCH) for f in found)


def test_a_changed_recipe_is_told_and_the_stored_steps_are_shown(
    damaged: Project, tmp_path: Path
) -> None:
    before = damaged.srd_json("explain", "photos", "1")
    moved = damaged.copy_to(tmp_path / "moved")
    moved.write_recipe({**moved.recipe(), "root": str(damaged.root), "seed": 1})
    after = moved.srd_json("explain", "photos", "1")
    assert "recipe seed 42 -> 1" in after.pop("changed")
    before.pop("changed")
    assert after == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nobody", "0"), "no dataset 'nobody'; there are: photos, other"),
        (("photos", "100000"), " patches, 0 to "),
        (("photos", "0", "-k", "3"), "there is no --variant 3"),
        (("other", "0"), "gold/pairs[other] has not been made: run `srd build 'gold/pairs[other]'"),
    ],
)
def test_what_is_not_there_is_one_line_without_waiting_for_torch(
    damaged: Project, words: tuple[str, ...], said: str
) -> None:
    script = (
        "import sys\nfrom sr_assets.cli import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    watched = Project(damaged.folder, (sys.executable, "-W", "ignore", "-c", script))
    done = watched.srd("explain", *words, code=1)
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("srd: ") and said in done.stderr


def test_a_number_that_is_none_is_a_usage_error(damaged: Project) -> None:
    assert (
        "'INDEX': 'first' is not a valid integer"
        in damaged.srd("explain", "photos", "first", code=2).stderr
    )


def test_a_terminal_is_told_of_the_picture(damaged: Project) -> None:
    ours, theirs = pty.openpty()
    command = [*damaged.command, "explain", "photos", "0", "--recipe", damaged.recipe_file.name]
    subprocess.run(
        command, cwd=damaged.folder, env=damaged.environment(), stdout=theirs, check=True
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the other end is closed, and all of it is read
        while part := os.read(ours, 1 << 16):
            said += part
    os.close(ours)
    assert "A picture of every step: --output FILE.png" in said.decode()
    assert "--output" not in damaged.srd("explain", "photos", "0").stdout
