"""A release in a virtual environment that has spandrel and onnxruntime, and nothing of ours."""

import json
import re
import subprocess
import sys
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from export_project import NO_FILES
from safetensors.torch import load_file
from skimage.data import chelsea
from test_release import GOOD, World, recipe, released

from sr_assets.releases import pull
from sr_models.fusion.build import build_fusion
from sr_models.networks import build_network

OURS = "sr-distillery"
WANTED = ("spandrel", "onnxruntime", "numpy", "pillow")
CODE = """
import sys
import numpy as np
lr = np.load("lr.npy")
if sys.argv[1] == "onnxruntime":
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
    feeds = {i.name: lr if i.name in ("input", "lr") else np.load("sr.npy")
             for i in session.get_inputs()}
    (sr,) = session.run(None, feeds)
else:
    import torch
    from spandrel import ModelLoader
    model = ModelLoader(device="cpu").load_from_file(sys.argv[2])
    with torch.no_grad():
        sr = model(torch.from_numpy(lr)).numpy()
np.save("out.npy", sr)
assert not {"sr_models", "sr_assets"} & {name.split(".")[0] for name in sys.modules}
"""
WITHOUT_US = """
import importlib, importlib.metadata, json, sys
failed = []
for name in ("sr_models", "sr_assets"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        failed.append(error.name)
there = sorted({d.name.lower() for d in importlib.metadata.distributions()})
print(json.dumps({"failed": failed, "there": there, "venv": sys.prefix != sys.base_prefix}))
"""


def needed(names: tuple[str, ...]) -> list[Distribution]:
    """What pip would install for `names`, as it is installed here."""
    found: dict[str, Distribution] = {}
    left = list(names)
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another system or Python
            continue
        plain = [r for r in found[name].requires or () if "extra ==" not in r]
        left += [re.split(r"[^\w.-]", r)[0].lower() for r in plain]
    return list(found.values())


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new virtual environment; links stand for what pip would copy there."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=sys.platform != "win32")
    (packages,) = folder.rglob("site-packages")
    for package in needed(WANTED):
        assert package.name != OURS
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists() and not top.endswith(".pth"):
                (packages / top).symlink_to(str(package.locate_file(top)))
    (there,) = folder.glob("*/python")
    return there


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with every file that others run, and a fusion, released and pulled."""
    root = tmp_path_factory.mktemp("elsewhere")
    files = {"onnx": True, "fp16": True, "pth": True, "int8": True}
    world = World(root, recipe(export={**NO_FILES, **files}))
    for name in world.recipe.experts:
        world.expert(name)
    for name in world.recipe.models:
        world.checkpoint(name)
    world.scores(**GOOD)
    for name in ("student", "fusion"):
        said, _ = released(world, name)
        assert said["released"], said
        pull(root, name, root / name)
    return root


def answered(python: Path, folder: Path, code: str, *arguments: str) -> str:
    """What code prints in the environment, without variables that add to its path."""
    done = subprocess.run(
        [python, "-I", "-c", code, *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(python: Path, folder: Path, library: str, file: str) -> np.ndarray:
    """What `library` makes of `lr.npy` in `folder` with one file of a release."""
    answered(python, folder, CODE, library, file)
    return np.load(folder / "out.npy")


def photo(top: int, left: int, height: int, width: int) -> np.ndarray:
    """Part of a photo, float32 [1, 3, height, width] in [0, 1]."""
    part = chelsea()[top : top + height, left : left + width]
    return np.ascontiguousarray(part.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * float(np.log10(np.square(a.clip(0, 1) - b.clip(0, 1)).mean()))


def test_the_environment_has_their_packages_and_none_of_ours(python: Path, tmp_path: Path) -> None:
    told = json.loads(answered(python, tmp_path, WITHOUT_US))
    assert told["failed"] == ["sr_models", "sr_assets"] and told["venv"]
    assert {*WANTED, "torch", "safetensors"} <= set(told["there"])
    assert not {OURS, "dagster", "zarr"} & set(told["there"])


def test_spandrel_and_onnxruntime_run_a_student(python: Path, pulled: Path) -> None:
    """On a photo, beside the network that this project builds of the weights."""
    folder = pulled / "student"
    lr = photo(60, 120, 47, 66)
    np.save(folder / "lr.npy", lr)
    args = {"num_feat": 8, "num_conv": 2}
    network = build_network("Compact", 2, args).eval()
    network.load_state_dict(load_file(folder / "student_x2.safetensors"))
    with torch.no_grad():
        expected = network(torch.from_numpy(lr)).numpy()
    for file in ("student_x2.safetensors", "student_x2.pth", "student_x2_fp16.safetensors"):
        sr = run(python, folder, "spandrel", file)
        half = "fp16" in file
        assert sr.shape == expected.shape
        assert np.abs(sr - expected.clip(0, 1)).max() < (1e-3 if half else 1e-5)  # it clamps
    for what, least in {"fp16": 60.0, "int8-cpu": 35.0, "int8-trt": 35.0}.items():
        sr = run(python, folder, "onnxruntime", f"student_x2_{what}.onnx")
        assert sr.shape == expected.shape and psnr(sr, expected) > least, what
    sr = run(python, folder, "onnxruntime", "student_x2_fp32.onnx")
    assert np.abs(sr - expected).max() < 1e-4


def test_onnxruntime_runs_a_batch(python: Path, pulled: Path) -> None:
    folder = pulled / "student"
    lr = np.concatenate([photo(0, 0, 17, 12), photo(90, 200, 17, 12), photo(50, 30, 17, 12)])
    np.save(folder / "lr.npy", lr)
    batch = run(python, folder, "onnxruntime", "student_x2_fp32.onnx")
    np.save(folder / "lr.npy", lr[1:2])
    alone = run(python, folder, "onnxruntime", "student_x2_fp32.onnx")
    assert batch.shape == (3, 3, 34, 24) and np.abs(batch[1:2] - alone).max() < 1e-5


def test_onnxruntime_runs_a_fusion(python: Path, pulled: Path) -> None:
    folder = pulled / "fusion"
    lr, picture = photo(60, 120, 19, 24), photo(120, 240, 38, 48)
    np.save(folder / "lr.npy", lr)
    np.save(folder / "sr.npy", picture)  # of either expert
    sr = run(python, folder, "onnxruntime", "fusion_x2_fp32.onnx")
    fusion = build_fusion("GateFusion", ["one", "two"], 2, {"width": 4, "depth": 1}).eval()
    fusion.load_state_dict(load_file(folder / "fusion_x2.safetensors"))
    with torch.no_grad():
        pictures = dict.fromkeys(("one", "two"), torch.from_numpy(picture))
        expected = fusion(torch.from_numpy(lr), pictures).numpy()
    assert np.abs(sr - expected).max() < 1e-4
