"""Released models as somebody else gets them: listed, fetched, verified, loaded by spandrel."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from spandrel import ModelLoader
from tiny_project import SCALE, Project

from sr_models.experts import edsr


def test_what_passes_its_checks_is_released_and_what_does_not_is_not(built: Project) -> None:
    released = {r["model"]: r for r in built.srd_json("releases")}
    assert set(released) == {"fusion", "alone"}
    assert {r["version"] for r in released.values()} == {"1.0.0"}
    assert released["fusion"]["psnr_y"]["bench"] > released["alone"]["psnr_y"]["bench"]
    table = built.srd("releases").stdout.splitlines()
    assert [line.split()[0] for line in table] == ["alone@1.0.0", "fusion@1.0.0"]

    folder = Path(built.srd("path", "model/student/release").stdout.strip())
    decision = json.loads((folder / "release.json").read_text())
    assert decision["released"] is False and decision["version"] is None
    assert decision["reasons"] == ["teacher_helped: no control: set its `control` to true"]
    message = built.srd("pull", "student", code=1).stderr
    assert message.startswith("srd: no released model 'student'") and message.count("\n") == 1


@pytest.mark.parametrize("name", ["fusion", "alone@1"])
def test_a_pulled_release_matches_its_manifest(built: Project, tmp_path: Path, name: str) -> None:
    to = tmp_path / "models"
    files = [Path(f) for f in built.srd_json("pull", name, "--to", str(to))]
    assert {f for f in to.rglob("*") if f.is_file()} == set(files)
    manifest = json.loads((to / "manifest.json").read_text())
    assert f"{manifest['model']}@{manifest['version']}".startswith(name)
    assert {f.name for f in files} == {*manifest["files"], "manifest.json"}
    for file, entry in manifest["files"].items():
        data = (to / file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"] and len(data) == entry["size"]
    made_from = {"gold/pairs[photos]", "silver/patches[photos]"}
    assert made_from <= set(manifest["data"])


def test_spandrel_loads_a_pulled_release_and_enlarges_a_picture(
    built: Project, sources: Path, tmp_path: Path
) -> None:
    built.srd("pull", "alone", "--to", str(tmp_path / "alone"))
    edsr.register()
    model = ModelLoader(device="cpu").load_from_file(tmp_path / "alone" / "alone_x2.safetensors")
    assert (model.architecture.id, model.scale) == ("Compact", SCALE)
    pixels = np.asarray(Image.open(sources / "bench" / "bench0.png"))
    lr = torch.from_numpy(pixels[:40, :56].copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        sr = model(lr)
    assert sr.shape == (1, 3, 80, 112)
    # it enlarges this picture, and does not make another
    again = torch.nn.functional.avg_pool2d(sr, SCALE)
    assert (again - lr).abs().mean() < 0.02


def test_a_damaged_release_is_refused_and_leaves_nothing_behind(project: Project) -> None:
    weights = project.root / "registry" / "alone" / "1.0.0" / "alone_x2.safetensors"
    weights.chmod(0o644)  # a version is read-only
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    target = project.folder / "fetched" / "alone"
    message = project.srd("pull", "alone", "--to", str(target), code=1).stderr
    assert message.count("\n") == 1
    assert str(weights.relative_to(project.folder)) in message and "damaged" in message
    assert not target.exists()
    assert list(project.folder.rglob("*.partial")) == []
