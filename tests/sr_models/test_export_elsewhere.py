"""What others make of our files: a Python that has spandrel and torch, but not this project."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from sr_models.export.fusing import fused_copy
from sr_models.export.onnx import export_onnx
from sr_models.export.weights import merged_state, serialise_pth, serialise_weights
from sr_models.networks import build_network

#: Imports of this project fail, wherever it is installed.
ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("sr_models", "sr_assets"):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Refuse())
"""
LOAD = """
from pathlib import Path

import torch
from safetensors.torch import load_file
from spandrel import ModelLoader, UnsupportedModelError

for file in sorted(Path(sys.argv[1]).iterdir()):
    if file.name.startswith("expected"):
        continue
    told = load_file(file.with_name(f"expected_{file.stem}.safetensors"))
    try:
        model = ModelLoader(device="cpu").load_from_file(file)
    except UnsupportedModelError:
        print(file.name, "unsupported")
        continue
    with torch.no_grad():
        sr = model.model.float().eval()(told["lr"])
    print(file.name, model.architecture.id, model.scale, float((sr - told["sr"]).abs().max()))
"""


def run_alone(code: str, *arguments: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def network(architecture: str, **args: object) -> nn.Module:
    torch.manual_seed(4)
    return build_network(architecture, 2, args).eval()


def expected(subject: nn.Module, file: Path) -> Path:
    lr = torch.rand(1, 3, 24, 32)
    with torch.no_grad():
        sr = subject(lr)
    save_file({"lr": lr, "sr": sr.contiguous()}, file)
    return file


def test_spandrel_alone_loads_what_is_its_own_and_knows_nothing_of_ours(tmp_path: Path) -> None:
    """docs/export.md has this as a table."""
    own = {
        "SPAN": {"feature_channels": 8},
        "Compact": {"num_feat": 8, "num_conv": 2},
        "DITN": {"dim": 12, "ITL_blocks": 1, "SAL_blocks": 1, "UFONE_blocks": 1},
        "realplksr_s": {"dim": 16, "n_blocks": 2},
    }
    ours = {
        "paragonsr2_realtime": {},
        "paragonsr_nano": {},
        "aether_small": {},
        "EDSR": {"num_feat": 8, "num_block": 1},
    }
    for architecture, args in {**own, **ours}.items():
        subject = network(architecture, **args)
        state = merged_state(fused_copy(subject))
        (tmp_path / f"{architecture}.safetensors").write_bytes(serialise_weights(state, {}))
        (tmp_path / f"{architecture}.pth").write_bytes(serialise_pth(state))
        expected(subject, tmp_path / f"expected_{architecture}.safetensors")
    lines = run_alone(LOAD, tmp_path).splitlines()
    told = {line.split()[0]: line.split()[1:] for line in lines}
    assert len(told) == 2 * (len(own) + len(ours))
    for architecture in own:
        for ending in ("safetensors", "pth"):
            name, scale, difference = told[f"{architecture}.{ending}"]
            assert name == ("PLKSR" if architecture == "realplksr_s" else architecture)
            assert scale == "2" and float(difference) < 1e-4, told
    for architecture in ours:
        assert told[f"{architecture}.safetensors"] == ["unsupported"]
        assert told[f"{architecture}.pth"] == ["unsupported"]


def test_onnxruntime_alone_runs_ours(tmp_path: Path) -> None:
    subject = network("paragonsr2_realtime")
    export_onnx(subject, 2, 1, tmp_path / "a.onnx")
    code = """
import onnxruntime
from safetensors.numpy import load_file
expected = load_file(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(sr,) = session.run(["output"], {"input": expected["lr"]})
print("torch" in sys.modules, abs(sr - expected["sr"]).max())
"""
    told = expected(subject, tmp_path / "expected.safetensors")
    torch_there, difference = run_alone(code, tmp_path / "a.onnx", told).split()
    assert torch_there == "False" and float(difference) < 1e-5
