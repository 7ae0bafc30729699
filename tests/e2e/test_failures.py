"""Mistakes and failures: one line that names the place, and all other work is done."""

import hashlib
from pathlib import Path

import pytest
from tiny_project import Project


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  patch_size: 32", "  patchsize: 32", "silver.patchsize: did you mean `patch_size`?"),
        ("scale: 2", "scale: two", "scale: input should be 2, 3, 4 or 8, not 'two'"),
        ("name: tiny", "name: tiny: tiny", "no valid YAML: "),
    ],
)
def test_a_mistake_in_the_recipe_is_one_line_with_its_place(
    empty: Project, old: str, new: str, said: str
) -> None:
    text = empty.recipe_file.read_text()
    assert text.count(f"\n{old}\n") + text.startswith(f"{old}\n") == 1
    empty.recipe_file.write_text(text.replace(old, new))
    line = 1 + text[: text.index(old)].count("\n")
    message = empty.srd("status", code=2).stderr
    assert message.startswith(f"srd: tiny.yaml:{line}: ") and said in message
    assert message.count("\n") == 1
    assert not empty.root.exists()


def test_a_name_that_points_nowhere_is_one_line_with_the_names_there_are(empty: Project) -> None:
    recipe = empty.recipe()
    recipe["models"]["student"]["teachers"] = ["nobody"]
    empty.write_recipe(recipe)
    message = empty.srd("build", code=2).stderr
    assert message.startswith("srd: tiny.yaml:") and message.count("\n") == 1
    assert "models.student.teachers: 'nobody' is not one of ['alone', 'compact'" in message


def test_a_missing_file_of_an_expert_is_named_and_the_other_expert_is_made(empty: Project) -> None:
    recipe = empty.recipe()
    recipe["experts"]["edsr"]["source"]["path"] = "nowhere/edsr_x2.pth"
    empty.write_recipe(recipe)
    done = empty.srd("build", "expert/*/weights", code=1)
    assert done.stderr.splitlines()[-1] == "srd: 1 failed"
    (failed,) = (line for line in done.stdout.splitlines() if "FAILED" in line)
    assert failed.startswith("expert/edsr/weights: FAILED: experts.edsr.source.path: edsr_x2.pth")
    assert str(empty.folder / "nowhere" / "edsr_x2.pth") in failed
    made = {name for name, row in empty.status().items() if row["state"] == "fresh"}
    assert made == {"expert/compact/weights"}


def test_one_failing_expert_holds_up_only_what_needs_it(empty: Project, sources: Path) -> None:
    caches = "expert/*/cache[photos]"
    recipe = empty.recipe()
    recipe["experts"]["edsr"]["sha256"] = "0" * 64
    empty.write_recipe(recipe)
    done = empty.srd("build", caches, code=1)
    assert done.stderr.splitlines()[-1] == "srd: 1 failed; 1 that need them were not tried"
    (failed,) = (line for line in done.stdout.splitlines() if "FAILED" in line)
    digest = hashlib.sha256((sources / "edsr.safetensors").read_bytes()).hexdigest()
    assert failed.startswith("expert/edsr/weights: FAILED: experts.edsr.sha256 is 0000")
    assert digest in failed
    status = empty.status()
    first = {name: row for name, row in status.items() if row["state"] == "fresh"}
    assert set(first) == {
        *("bronze/images[photos]", "bronze/images[bench]", "bronze/benchmarks"),
        *("bronze/overlap[photos]", "silver/patches[photos]", "gold/pairs[photos]"),
        *("expert/compact/weights", "expert/compact/cache[photos]"),
    }
    rest = {"expert/edsr/weights", "expert/edsr/cache[photos]"}
    assert {status[name]["state"] for name in rest} == {"missing"}

    recipe["experts"]["edsr"]["sha256"] = digest
    empty.write_recipe(recipe)
    runs = empty.runs()
    done = empty.srd("build", caches)
    assert {line.split(": ")[0] for line in done.stdout.splitlines()[:-1]} == rest
    assert done.stdout.splitlines()[-1] == "Made 2 outputs."
    assert empty.runs() == runs + 2
    status = empty.status()
    assert {name for name, row in status.items() if row["state"] == "fresh"} == {*first, *rest}
    assert {name: status[name] for name in first} == first
