"""`srd verify` on a damaged project: everything that is wrong is named, whole outputs are not."""

import json
import re
from pathlib import Path

import pytest
from tiny_project import Project, tiny_recipe

CACHE = "expert/edsr/cache[photos]"


@pytest.fixture(scope="module")
def cached(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project as far as one expert's cache, without any training; no test changes it."""
    project = Project(tmp_path_factory.mktemp("cached"))
    recipe = tiny_recipe(sources)
    # never built: features are cached for it
    recipe["models"]["wide"] = {"kind": "fusion", "train": recipe["models"]["fusion"]["train"]}
    project.write_recipe(recipe)
    project.srd("build", CACHE)
    return project


@pytest.fixture
def project(cached: Project, tmp_path: Path) -> Project:
    """A copy that a test may damage."""
    return cached.copy_to(tmp_path / "project")


def test_missing_short_and_flipped_files_are_all_named(project: Project) -> None:
    made = {name: row["path"] for name, row in project.status().items() if row["path"]}
    folders = {name: Path(path) for name, path in made.items()}
    (folders["gold/pairs[photos]"] / "params.parquet").unlink()
    shard = next((folders["silver/patches[photos]"] / "patches.zarr" / "hr").rglob("c/*/*/*/*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    marker = folders["bronze/images[photos]"] / "srd.json"
    marker.write_bytes(marker.read_bytes().replace(b'"seconds": ', b'"seconds": 1'))
    found = project.srd_json("verify", "--recompute", "0", code=1)
    bad = {name: lines for name, lines in found.items() if lines}
    assert set(bad) == {"gold/pairs[photos]", "silver/patches[photos]", "bronze/images[photos]"}
    assert all(line.startswith("params.parquet: cannot") for line in bad["gold/pairs[photos]"])
    assert any("was written with" in line for line in bad["silver/patches[photos]"])
    assert "srd.json of its output" in bad["bronze/images[photos]"][0]


def test_a_percentage_of_an_expert_cache_is_computed_again(project: Project) -> None:
    """A cache whose pictures are whole but not those of its expert, as a wrong program writes."""
    assert project.srd_json("verify", CACHE, "--recompute", "10%")[CACHE] == []
    weights = Path(str(project.status()["expert/edsr/weights"]["path"]))
    data = next(weights.glob("*.safetensors"))
    changed = bytearray(data.read_bytes())
    for at in range(8 + int.from_bytes(changed[:8], "little") + 3, len(changed), 4):
        changed[at] ^= 0x80  # the signs of all weights; the header stays
    data.write_bytes(changed)
    told = project.srd("verify", CACHE, "--recompute", "100%", code=1).stdout
    assert len(re.findall(r"sr, sample \d+, variant 0: the expert now gives another", told)) > 1
    assert len(re.findall(r"features, sample \d+, variant 0: the expert now gives oth", told)) > 1
    assert f"{CACHE}: differs" in told


def test_a_sample_that_is_none_is_a_usage_error(empty: Project) -> None:
    said = empty.srd("verify", "--recompute", "few", code=2).stderr
    assert "neither a count such as 8 nor a percentage such as 1%" in said


def test_an_output_of_a_newer_program_is_refused(project: Project) -> None:
    marker = Path(str(project.status()[CACHE]["path"])) / "srd.json"
    newer = {**json.loads(marker.read_bytes()), "parts": []}
    newer["schema"] = {"name": "srd.output", "version": 99, "needs": "77.0.0"}
    del newer["checksum"]
    marker.write_text(json.dumps(newer))
    said = project.srd("status", code=1).stderr
    assert "install sr-distillery 77.0.0 or later" in said and said.count("\n") == 1
