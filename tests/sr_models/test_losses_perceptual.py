"""Losses on features of networks, with random weights that lie where the real ones would."""

from __future__ import annotations

import hashlib
import sys
from importlib.resources import files
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from sr_models.losses.perceptual import CLIP, VGG19
from sr_models.losses.registry import LossTerms, open_losses
from sr_models.losses.weights import MissingWeightsError, find_weights, read_weights

CPU = torch.device("cpu")
NETWORKS = ("vgg", "lpips", "clip")


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("SRD_WEIGHTS", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("SRD_WEIGHTS", str(folder))
    return folder


def torch_hub_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def hugging_face_folder(tmp_path: Path) -> Path:
    repository = tmp_path / "hub" / "models--timm--vit_base_patch32_clip_224.openai"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    folder = repository / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    return folder


def features_of(architecture: str) -> nn.Module:
    with torch.device("meta"):
        return getattr(models, architecture)(weights=None).features


def random_state(architecture: str, layers: int) -> dict[str, Tensor]:
    """As torchvision names them, with a leftover of the classifier."""
    generator = torch.Generator().manual_seed(0)
    shapes = features_of(architecture)[:layers].state_dict()
    state = {
        f"features.{name}": torch.randn(t.shape, generator=generator)
        * (2 / t[0].numel()) ** 0.5  # keeps the size of the features from layer to layer
        for name, t in shapes.items()
        if name.endswith("weight")
    }
    for name, t in shapes.items():
        if name.endswith("bias"):
            state[f"features.{name}"] = 0.1 * torch.randn(t.shape, generator=generator)
    return state | {"classifier.6.bias": torch.zeros(1000)}


def random_clip() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):  # its own initialisation takes seconds
        network = timm.create_model("vit_base_patch32_clip_quickgelu_224.openai", pretrained=False)
    state = {
        name: torch.randn(t.shape, generator=generator)
        * (t[0].numel() ** -0.5 if t.ndim > 1 else 1)
        for name, t in network.state_dict().items()
    }
    network.load_state_dict(state, assign=True)
    return network.eval()


def pictures(height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    output, target = torch.rand(2, 2, 3, height, width, generator=generator)
    return 1.3 * output - 0.15, target


def with_gradient(terms: LossTerms, name: str, output: Tensor, target: Tensor) -> Tensor:
    """The gradient, after the check that a step along it changes the loss by as much as it says.

    In float32: the step is long enough to be told from rounding.
    """
    output = output.clone().requires_grad_()
    terms(output, target, {name: 1.0})[name].backward()
    gradient = output.grad
    assert gradient is not None and torch.isfinite(gradient).all()
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = (
            terms(picture, target, {name: 1.0})[name].item()
            for picture in (output + step, output - step)
        )
    assert (ahead - behind) / 2e-2 == pytest.approx(gradient.norm().item(), rel=0.05)
    return gradient


def equal_pictures_give_zero(terms: LossTerms, name: str, picture: Tensor) -> None:
    for target in (picture, torch.zeros_like(picture), torch.full_like(picture, 0.5)):
        output = target.clone().requires_grad_()
        loss = terms(output, target, {name: 1.0})[name]
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-5)
        assert output.grad is not None and torch.isfinite(output.grad).all()


def test_vgg_compares_the_three_layers_it_names(tmp_path: Path) -> None:
    # Convolutions that double the first channel and nothing else: a red picture of value v has
    # 2^n relu((v - mean) / std) there after n of them, which can be told by hand.
    state = random_state("vgg19", 27)
    for name, tensor in state.items():
        tensor.zero_()
        if name.startswith("features") and name.endswith("weight"):
            tensor[0, 0, 1, 1] = 2
    torch.save(state, torch_hub_folder(tmp_path) / "vgg19.pth")
    output, target = torch.zeros(2, 1, 3, 16, 24)
    output[:, 0] = 0.485 + 0.229
    expected = (2**4 / 128 + 2**8 / 256 + 2**12 / 512) / 3
    terms = open_losses(["vgg"], CPU)
    assert terms(output, target, {"vgg": 1.0})["vgg"].item() == pytest.approx(expected, rel=1e-5)


def test_vgg_has_the_gradient_of_its_value(own_folder: Path) -> None:
    save_file(random_state("vgg19", 27), own_folder / "vgg19.safetensors")
    terms = open_losses(["vgg"], CPU)
    with_gradient(terms, "vgg", *pictures(8, 13))
    equal_pictures_give_zero(terms, "vgg", pictures(8, 8)[1])
    with pytest.raises(ValueError, match="'vgg' takes pictures from 8x8, got 7x8"):
        terms(*pictures(7, 8), {"vgg": 1.0})


def test_lpips_is_its_formula_with_the_published_linear_layers(tmp_path: Path) -> None:
    state = random_state("alexnet", 12)
    # As the published file is: older than torch's zip format.
    torch.save(
        state,
        torch_hub_folder(tmp_path) / "alexnet.pth",
        _use_new_zipfile_serialization=False,
    )
    terms = open_losses(["lpips"], CPU)
    output, target = pictures(40, 33)
    lpips = files("torchmetrics.functional.image") / "lpips_models" / "alex.pth"
    linear = torch.load(str(lpips), map_location="cpu", weights_only=True)
    layers = features_of("alexnet")[:12]
    layers.load_state_dict(
        {n.removeprefix("features."): t for n, t in state.items() if "features" in n}, assign=True
    )
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    x, y = ((2 * picture - 1 - shift) / scale for picture in (output, target))
    expected, level = torch.zeros(()), 0
    with torch.no_grad():
        for layer in layers:
            x, y = layer(x), layer(y)
            if isinstance(layer, nn.ReLU):
                error = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square()
                weight = linear[f"lin{level}.model.1.weight"]
                expected, level = expected + F.conv2d(error, weight).mean(), level + 1
    assert level == 5
    found = terms(output, target, {"lpips": 1.0})["lpips"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_lpips_has_the_gradient_of_its_value(own_folder: Path) -> None:
    torch.save(random_state("alexnet", 12), own_folder / "alexnet.pth")
    terms = open_losses(["lpips"], CPU)
    with_gradient(terms, "lpips", *pictures(31, 36))
    equal_pictures_give_zero(terms, "lpips", pictures(31, 31)[1])
    with pytest.raises(ValueError, match="'lpips' takes pictures from 31x31, got 30x31"):
        terms(*pictures(30, 31), {"lpips": 1.0})


def test_lpips_where_every_feature_is_zero_has_a_finite_gradient(own_folder: Path) -> None:
    state = {name: torch.zeros_like(t) for name, t in random_state("alexnet", 12).items()}
    torch.save(state, own_folder / "alexnet.pth")
    output, target = pictures(31, 31)
    output.requires_grad_()
    open_losses(["lpips"], CPU)(output, target, {"lpips": 1.0})["lpips"].backward()
    assert output.grad is not None and torch.isfinite(output.grad).all()


def test_clip_is_one_minus_the_cosine_and_reaches_the_output(tmp_path: Path) -> None:
    network = random_clip()
    save_file(network.state_dict(), hugging_face_folder(tmp_path) / "model.safetensors")
    terms = open_losses(["clip"], CPU)
    output, target = pictures(224, 224)  # the size of the network: nothing is resized
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        features, wanted = (network((picture - mean) / std) for picture in (output, target))
    expected = (1 - F.cosine_similarity(features, wanted)).mean()
    found = terms(output, target, {"clip": 1.0})["clip"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)

    gradient = with_gradient(terms, "clip", *pictures(9, 12))
    assert gradient.abs().min() > 0
    equal_pictures_give_zero(terms, "clip", pictures(1, 5)[1][:1])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("vgg", "vgg19-dcbb9e9d.pth"),
        ("lpips", "alexnet-owt-7be5be79.pth"),
        ("clip", "vit_base_patch32_clip_224.openai.safetensors"),
    ],
)
def test_missing_weights_are_told_before_anything_runs(
    tmp_path: Path, name: str, file: str
) -> None:
    with pytest.raises(MissingWeightsError) as error:
        open_losses(["l1", name], CPU)
    told = str(error.value)
    assert "\n" not in told and repr(name) in told and file in told
    assert str(tmp_path / "torch" / "hub" / "checkpoints") in told and "SRD_WEIGHTS" in told


@pytest.mark.parametrize(("name", "package"), [("lpips", "torchmetrics"), ("clip", "timm")])
def test_missing_package_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingWeightsError, match=rf"needs the package {package}: pip install"):
        open_losses([name], CPU)


def test_own_folder_goes_before_the_hub_and_the_published_name_before_others(
    tmp_path: Path, own_folder: Path
) -> None:
    places = [
        torch_hub_folder(tmp_path) / "vgg19-dcbb9e9d.pth",
        own_folder / "vgg19.pth",
        own_folder / "vgg19-dcbb9e9d.pth",
    ]
    for place in places:
        place.touch()
        assert find_weights(VGG19) == place
    in_cache = hugging_face_folder(tmp_path) / "model.safetensors"
    in_cache.touch()
    assert find_weights(CLIP) == in_cache


def test_file_is_checked_against_the_hash_in_its_name(tmp_path: Path, own_folder: Path) -> None:
    damaged = own_folder / "vgg19-dcbb9e9d.pth"
    torch.save({"features.0.bias": torch.ones(1)}, damaged)
    with pytest.raises(ValueError, match=r"vgg19-dcbb9e9d\.pth is damaged"):
        open_losses(["vgg"], CPU)
    digest = hashlib.sha256(damaged.read_bytes()).hexdigest()
    whole = damaged.rename(own_folder / f"vgg19-{digest[:8]}.pth")
    assert read_weights(whole).keys() == {"features.0.bias"}


def test_tensors_of_another_network_are_refused_with_the_file(own_folder: Path) -> None:
    torch.save({"features.0.bias": torch.ones(1)}, own_folder / "vgg19.pth")
    with pytest.raises(ValueError, match=r"vgg19\.pth does not fit its network: .*Missing key"):
        open_losses(["vgg"], CPU)
    save_file({"cls_token": torch.ones(1, 1, 768)}, own_folder / f"{CLIP.names[0]}")
    with pytest.raises(ValueError, match=r"openai\.safetensors does not fit its network"):
        open_losses(["clip"], CPU)


class Evil:
    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Path, ("ran",)


def test_python_objects_in_a_weights_file_are_never_made(own_folder: Path) -> None:
    path = own_folder / "vgg19.pth"
    torch.save({"features.0.bias": Evil()}, path)
    with pytest.raises(ValueError, match=r"vgg19\.pth cannot be read as weights"):
        read_weights(path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(ValueError, match=r"vgg19\.pth does not hold a state dict"):
        read_weights(path)


def test_networks_are_frozen(own_folder: Path) -> None:
    torch.save(random_state("alexnet", 12), own_folder / "alexnet.pth")
    network = open_losses(["lpips"], CPU)._terms["lpips"]
    assert isinstance(network, nn.Module)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
