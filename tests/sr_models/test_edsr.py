"""EDSR: its numbers, its two naming schemes, and what spandrel makes of its files."""

import pytest
import spandrel
import torch
from safetensors.torch import save_file

from sr_models.experts import edsr
from sr_models.experts.edsr import EDSR, RGB_MEAN


@pytest.fixture(autouse=True)
def _registered():
    edsr.register()
    edsr.register()  # calling it again does nothing


def _random(**args):
    torch.manual_seed(3)
    return EDSR(**{"num_feat": 8, "num_block": 2, **args}).eval()


def _official(model):
    """The state dict as EDSR-PyTorch names it, with its two mean shifts at range 255."""
    blocks = len(model.body)
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in (
            ("conv_first", "head.0"),
            ("conv_after_body", f"body.{blocks}"),
            ("conv_last", "tail.1"),
            ("upsample", "tail.0"),
        ):
            if name.startswith(ours):
                name = theirs + name[len(ours) :]
        state[name.replace(".conv1.", ".body.0.").replace(".conv2.", ".body.2.")] = tensor
    mean = 255 * torch.tensor(RGB_MEAN)
    for shift, sign in (("sub_mean", -1), ("add_mean", 1)):
        state[f"{shift}.weight"] = torch.eye(3).view(3, 3, 1, 1)
        state[f"{shift}.bias"] = sign * mean
    return state


def test_large_has_the_published_parameters_and_keys():
    with torch.device("meta"):
        model = EDSR(num_feat=256, num_block=32, upscale=4)
    assert sum(p.numel() for p in model.parameters()) == 43_089_923
    names = set(model.state_dict())
    assert len(names) == 138
    assert {"conv_first.weight", "body.31.conv2.bias", "conv_after_body.weight"} <= names
    assert {"upsample.0.weight", "upsample.2.weight", "conv_last.bias"} <= names
    assert model.state_dict()["upsample.0.weight"].shape == (1024, 256, 3, 3)
    assert model.hyperparameters["res_scale"] == 0.1


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_every_scale_enlarges_and_loads_again(scale, tmp_path):
    model = _random(upscale=scale)
    x = torch.rand(2, 3, 7, 10)
    with torch.no_grad():
        y = model(x)
    assert y.shape == (2, 3, 7 * scale, 10 * scale)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    loaded = spandrel.ModelLoader().load_from_file(tmp_path / "a.safetensors")
    assert (loaded.architecture.id, loaded.scale) == ("EDSR", scale)
    with torch.no_grad():
        assert torch.equal(loaded.model.eval()(x), y)


def test_scale_without_an_upsampler_is_refused():
    with pytest.raises(ValueError, match=r"upscale 5 is not one of"):
        EDSR(upscale=5)


def test_forward_follows_the_definition():
    model = _random(num_block=1, res_scale=0.1, upscale=2)
    x = torch.rand(1, 3, 5, 6)
    mean = torch.tensor(RGB_MEAN).view(1, 3, 1, 1)
    with torch.no_grad():
        first = model.conv_first((x - mean) * 255)
        block = model.body[0]
        deep = first + 0.1 * block.conv2(block.conv1(first).clamp(min=0))
        up = torch.nn.functional.pixel_shuffle(
            model.upsample[0](model.conv_after_body(deep) + first), 2
        )
        expected = model.conv_last(up) / 255 + mean
        assert torch.allclose(model(x), expected, atol=1e-6)


def test_official_names_give_the_same_function(tmp_path):
    model = _random()
    torch.save(_official(model), tmp_path / "a.pth")
    torch.save({"params": model.state_dict()}, tmp_path / "b.pth")
    x = torch.rand(1, 3, 9, 8)
    for name in ("a.pth", "b.pth"):
        loaded = spandrel.ModelLoader().load_from_file(tmp_path / name)
        assert loaded.architecture.id == "EDSR"
        with torch.no_grad():
            assert torch.equal(loaded.model.eval()(x), model(x))


def test_another_colour_mean_is_refused_by_name():
    state = _official(_random())
    state["add_mean.bias"] = torch.tensor([127.5, 127.5, 127.5])
    with pytest.raises(ValueError, match=r"add_mean\.bias is \[127\.5"):
        spandrel.ModelLoader().load_from_state_dict(state)
    state = _official(_random())
    state["sub_mean.weight"] = 2 * state["sub_mean.weight"]
    with pytest.raises(ValueError, match=r"sub_mean\.weight is not the identity"):
        spandrel.ModelLoader().load_from_state_dict(state)


@pytest.mark.parametrize(("num_feat", "usual", "other"), [(8, 1.0, 0.1), (256, 0.1, 1.0)])
def test_residual_scale_is_stored_only_where_it_is_unusual(num_feat, usual, other):
    for res_scale, stored in ((usual, False), (other, True)):
        model = EDSR(num_feat=num_feat, num_block=1, upscale=2, res_scale=res_scale)
        assert ("res_scale" in model.state_dict()) is stored
        half = {k: v.half() for k, v in model.state_dict().items()}
        loaded = spandrel.ModelLoader().load_from_state_dict(half)
        assert loaded.model.hyperparameters["res_scale"] == res_scale
        assert loaded.model.res_scale.item() == pytest.approx(res_scale, rel=1e-3)


def test_a_missing_tensor_is_an_error():
    state = _random().state_dict()
    del state["body.1.conv2.bias"]
    with pytest.raises(RuntimeError, match=r"body\.1\.conv2\.bias"):
        spandrel.ModelLoader().load_from_state_dict(state)


@pytest.mark.parametrize(
    "change",
    [
        {"conv_first.weight": torch.zeros(8, 1, 3, 3)},
        {"upsample.0.weight": torch.zeros(24, 8, 3, 3)},
        {"conv_last.weight": None},
    ],
)
def test_other_networks_are_not_taken_for_edsr(change):
    state = {**_random().state_dict(), **change}
    assert not edsr.detect({k: v for k, v in state.items() if v is not None})
