"""A release in a Python that has spandrel and onnxruntime, and nothing of this project."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_release import GOOD, World, recipe, released

from sr_assets.releases import pull
from sr_models.fusion.build import build_fusion

OURS = ("sr_models", "sr_assets", "sr_distillery", "__editable__")
CODE = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])
hidden = [importlib.util.find_spec(name) for name in ("sr_models", "sr_assets")]
import numpy as np
lr = np.load("lr.npy")
if sys.argv[2] == "onnxruntime":
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[3], providers=["CPUExecutionProvider"])
    feeds = {i.name: lr if i.name in ("input", "lr") else np.load("sr.npy")
             for i in session.get_inputs()}
    (sr,) = session.run(None, feeds)
else:
    import torch
    from spandrel import ModelLoader
    model = ModelLoader(device="cpu").load_from_file(sys.argv[3])
    with torch.no_grad():
        sr = model(torch.from_numpy(lr)).numpy()
np.save("out.npy", sr)
loaded = [name for name in sys.modules if name.split(".")[0] in ("sr_models", "sr_assets")]
print(json.dumps({"hidden": hidden, "loaded": loaded, "isolated": sys.flags.isolated}))
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed packages without this project, and without files that add to the path."""
    folder = tmp_path_factory.mktemp("site-packages")
    for item in Path(sysconfig.get_path("purelib")).iterdir():
        if item.suffix != ".pth" and not item.name.startswith(OURS):
            (folder / item.name).symlink_to(item)
    return folder


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student and a fusion, released with ONNX and pulled."""
    root = tmp_path_factory.mktemp("elsewhere")
    world = World(root, recipe())
    for name in world.recipe.experts:
        world.expert(name)
    for name in world.recipe.models:
        world.checkpoint(name)
    world.scores(**GOOD)
    for name in ("student", "fusion"):
        assert released(world, name)[0]["released"]
        pull(root, name, root / name)
    return root


def run(packages: Path, folder: Path, library: str, file: str) -> np.ndarray:
    """What `library` makes of `lr.npy` in `folder` with one file of a release."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CODE, str(packages), library, file],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"hidden": [None, None], "loaded": [], "isolated": 1}
    return np.load(folder / "out.npy")


def network(folder: Path, name: str) -> torch.nn.Module:
    """The network that the release is of, from its weights, built by this project."""
    from spandrel import ModelLoader

    return ModelLoader(device="cpu").load_from_file(folder / f"{name}_x2.safetensors").model


def test_spandrel_and_onnxruntime_run_a_student(packages: Path, pulled: Path) -> None:
    folder = pulled / "student"
    lr = np.random.default_rng(1).random((3, 3, 17, 12), np.float32)
    np.save(folder / "lr.npy", lr)
    with torch.no_grad():
        expected = network(folder, "student")(torch.from_numpy(lr)).numpy()
    graph = run(packages, folder, "onnxruntime", "student_x2_fp32.onnx")
    assert graph.shape == (3, 3, 34, 24) and np.abs(graph - expected).max() < 1e-4
    for file in sorted(f.name for f in folder.glob("student_x2.*")):  # every fp32 weights file
        sr = run(packages, folder, "spandrel", file)
        assert np.abs(sr - expected.clip(0, 1)).max() < 1e-5  # spandrel clamps


def test_onnxruntime_runs_a_fusion(packages: Path, pulled: Path) -> None:
    folder = pulled / "fusion"
    random = np.random.default_rng(2)
    lr, picture = (
        random.random((1, 3, 9, 14), np.float32),
        random.random((1, 3, 18, 28), np.float32),
    )
    np.save(folder / "lr.npy", lr)
    np.save(folder / "sr.npy", picture)  # of either expert
    sr = run(packages, folder, "onnxruntime", "fusion_x2_fp32.onnx")
    fusion = build_fusion("GateFusion", ["one", "two"], 2, {"width": 4, "depth": 1}).eval()
    fusion.load_state_dict(load_file(folder / "fusion_x2.safetensors"))
    with torch.no_grad():
        pictures = dict.fromkeys(("one", "two"), torch.from_numpy(picture))
        expected = fusion(torch.from_numpy(lr), pictures).numpy()
    assert np.abs(sr - expected).max() < 1e-4
