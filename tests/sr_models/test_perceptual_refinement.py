"""Refinement with a tiny pipeline on disk: what the step is, tiles, colours, missing files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_sd3 import adapters, picture, write_weights
from torch import Tensor, nn

from sr_models.perceptual.blending import blend_tiles
from sr_models.perceptual.colour import COLOURS, adain_colour, wavelet_colour
from sr_models.perceptual.folder import PerceptualFilesError, needed_files
from sr_models.perceptual.lora import merge_lora
from sr_models.perceptual.pipeline import Refiner, Tiling, open_refiner

pytest.importorskip("diffusers", reason="needs the extra `diffusion`")

CPU = torch.device("cpu")
SMALL = Tiling(tile=96, vae_tile=128, overlap=32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "tsdsr")


@pytest.fixture(scope="module")
def refiner(weights: Path) -> Refiner:
    return open_refiner(weights, CPU, tiling=Tiling(tile=256))


def test_a_latent_has_sixteen_channels_and_an_eighth_of_the_side(refiner: Refiner) -> None:
    latent = refiner.encode(picture(64, 48))
    assert latent.shape == (1, 16, 8, 6)
    assert refiner.decode(latent).shape == (1, 3, 64, 48)
    mean = refiner.networks.vae.encode(picture(64, 48) * 2 - 1).latent_dist.mean
    assert torch.allclose(latent, mean * 1.5305)  # scaled, not shifted


def test_one_step_is_the_latent_less_what_the_transformer_says(refiner: Refiner) -> None:
    latent = refiner.encode(picture(64, 48))
    with torch.no_grad():
        said = refiner.networks.transformer(
            hidden_states=latent,
            timestep=torch.tensor([1000.0]),
            encoder_hidden_states=refiner.networks.prompt,
            pooled_projections=refiner.networks.pooled,
        ).sample
        moved = refiner.denoise(latent)
    assert torch.equal(moved, latent - said)
    assert float(said.abs().mean()) > 0.01


def test_several_steps_follow_the_schedule_of_the_teacher(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = open_refiner(weights, CPU, steps=4, tiling=Tiling(tile=256))
    times: list[float] = []

    def velocity(self: Refiner, latent: Tensor, time: float) -> Tensor:
        times.append(round(time, 2))
        return torch.ones_like(latent)

    monkeypatch.setattr(Refiner, "velocity", velocity)
    moved = teacher.denoise(torch.zeros(1, 16, 2, 2))
    assert times == [1000.0, 857.69, 602.15, 8.93]
    assert torch.allclose(moved, torch.full_like(moved, -1.0))  # sigma goes from 1 to 0


def test_alpha_goes_from_the_refined_picture_to_the_given_one(refiner: Refiner) -> None:
    given = picture(64, 48) * 1.2 - 0.1  # a network's result leaves [0, 1]
    refined, half, own = (refiner.refine(given, alpha) for alpha in (0.0, 0.5, 1.0))
    assert torch.equal(own, given)
    assert torch.allclose(half, (given + refined) / 2, atol=1e-6)
    assert float((refined - given).abs().mean()) > 0.002
    assert torch.equal(refiner.refine(given), refined)  # nothing is drawn


@settings(max_examples=6)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_any_size_comes_back(refiner: Refiner, height: int, width: int) -> None:
    given = torch.rand(1, 3, height, width)
    made = refiner.refine(given)
    assert made.shape == given.shape and torch.isfinite(made).all()


def test_tiles_leave_no_seam(weights: Path) -> None:
    """Along no line where tiles may meet does the picture step by a level, as it does when cut."""
    given = picture(256, 240)
    whole = open_refiner(weights, CPU, tiling=Tiling(256, 256, 32))
    with torch.no_grad():  # a random decoder draws noise: this is the contrast of detail
        for parameter in whole.networks.vae.decoder.conv_out.parameters():
            parameter.mul_(0.05)
    refined = whole.refine(given)

    def largest_step(tiled: Tensor) -> float:
        """Of what tiles change, the mean along a row or column between multiples of 8 px."""
        change = tiled - refined
        down = change.diff(dim=-2).mean(dim=-1)[..., 7::8]
        across = change.diff(dim=-1).mean(dim=-2)[..., 7::8]
        return float(torch.cat([down, across], dim=-1).abs().amax())

    quarters = [
        torch.cat([whole.refine(half[..., :120]), whole.refine(half[..., 120:])], dim=-1)
        for half in (given[..., :128, :], given[..., 128:, :])
    ]
    assert largest_step(torch.cat(quarters, dim=-2)) > 2 / 255
    tiled = Refiner(whole.networks, tiling=SMALL).refine(given)
    assert 0 < largest_step(tiled) < 1 / 255


def test_blending_is_exact_for_what_needs_no_context() -> None:
    maps = torch.rand(1, 2, 70, 45)
    assert torch.allclose(blend_tiles(lambda x: x * 3 + 1, maps, 24, 8), maps * 3 + 1, atol=1e-6)
    pooled = blend_tiles(
        lambda x: nn.functional.avg_pool2d(x, 4), maps[..., :68, :44], 24, 8, down=4
    )
    assert torch.allclose(pooled, nn.functional.avg_pool2d(maps[..., :68, :44], 4), atol=1e-6)
    large = blend_tiles(lambda x: nn.functional.interpolate(x, scale_factor=2.0), maps, 24, 8, up=2)
    assert torch.allclose(large, nn.functional.interpolate(maps, scale_factor=2.0), atol=1e-6)


def test_blending_weighs_the_middle_of_a_tile_most() -> None:
    """Tiles that disagree: at its first pixel a tile hardly counts, so that nothing jumps."""
    number = iter((0.0, 1.0))
    made = blend_tiles(
        lambda x: torch.full_like(x, next(number)), torch.zeros(1, 1, 64, 120), 64, 8
    )
    line = made[0, 0, 30]
    assert torch.all(line.diff() >= 0) and line[0] == 0 and line[-1] == 1
    assert line[56] < 0.02 and line[63] > 0.98
    assert made.shape == (1, 1, 64, 120)


def test_wavelet_keeps_detail_and_takes_colours() -> None:
    like, refined = picture(96, 96, 1), picture(96, 96, 2)
    made = wavelet_colour(refined + torch.tensor([0.3, -0.2, 0.1]).view(1, 3, 1, 1), like)
    assert torch.allclose(made, wavelet_colour(refined, like), atol=1e-5)  # an offset is gone
    assert abs(float((made - like).mean())) < 0.02
    sharp = made.diff(dim=-1)
    assert (
        torch.corrcoef(torch.stack([sharp.flatten(), refined.diff(dim=-1).flatten()]))[0, 1] > 0.95
    )
    assert torch.allclose(wavelet_colour(like, like), like)


def test_adain_takes_mean_and_deviation() -> None:
    like, refined = picture(64, 80, 3), picture(64, 80, 4) * 0.3 + 0.5
    made = adain_colour(refined, like)
    for statistic in (torch.mean, torch.std):
        wanted = statistic(like, dim=(-2, -1))
        assert torch.allclose(statistic(made, dim=(-2, -1)), wanted, atol=1e-3)
    assert torch.allclose(adain_colour(like, like), like, atol=1e-6)
    assert torch.equal(COLOURS["none"](refined, like), refined)


def two_layers() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Conv2d(3, 4, 3, padding=1))


@pytest.mark.parametrize("spelling", ["peft", "adapter", "old"])
def test_a_merged_adapter_is_the_one_beside_the_layer(spelling: str) -> None:
    network, layers = two_layers(), dict(two_layers().named_modules())
    tensors = adapters({n: m for n, m in layers.items() if n}, "", 0.5)
    x, y = torch.randn(2, 6), torch.randn(1, 3, 5, 5)
    a, b = tensors["0.lora_A.weight"], tensors["0.lora_B.weight"]
    c, d = tensors["1.lora_A.weight"], tensors["1.lora_B.weight"]
    wanted_x = network[0](x) + 0.5 * (x @ a.T @ b.T)
    down = nn.functional.conv2d(y, c, padding=1)
    wanted_y = network[1](y) + nn.functional.conv2d(down, d)
    tensors |= {"0.alpha": torch.tensor(2.0)}  # half of the rank; of the other it is the rank
    spelt = {
        "peft": lambda key: f"base_model.model.{key}",
        "adapter": lambda key: key.replace(".weight", ".default.weight"),
        "old": lambda key: (
            "transformer." + key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
        ),
    }[spelling]
    assert merge_lora(network, {spelt(key): t for key, t in tensors.items()}) == 2
    assert torch.allclose(network[0](x), wanted_x, atol=1e-5)
    assert torch.allclose(network[1](y), wanted_y, atol=1e-5)


def test_merging_is_what_peft_does(weights: Path) -> None:
    pytest.importorskip("peft", reason="the peer of this comparison")
    from diffusers import SD3Transformer2DModel
    from peft import LoraConfig, set_peft_model_state_dict

    tensors = load_file(weights / "lora/transformer.safetensors")
    own, theirs = (SD3Transformer2DModel.from_pretrained(weights / "transformer") for _ in range(2))
    merge_lora(own, tensors)
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "proj_out"]))
    bare = {key.removeprefix("transformer."): t for key, t in tensors.items()}
    assert not set_peft_model_state_dict(theirs, bare).unexpected_keys
    arguments = {
        "hidden_states": torch.randn(1, 16, 8, 6),
        "timestep": torch.tensor([1000.0]),
        "encoder_hidden_states": torch.randn(1, 7, 32),
        "pooled_projections": torch.randn(1, 16),
    }
    with torch.no_grad():
        one, two = (network.eval()(**arguments).sample for network in (own, theirs))
    assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"9.lora_A.weight": torch.zeros(2, 6), "9.lora_B.weight": torch.zeros(5, 2)}, "not there"),
        ({"0.lora_A.weight": torch.zeros(2, 7), "0.lora_B.weight": torch.zeros(5, 2)}, "not fit"),
        ({"0.lora_A.weight": torch.zeros(2, 6)}, "one half"),
        ({"0.weight": torch.zeros(5, 6)}, "no tensor of an adapter"),
        ({}, "no adapter"),
    ],
)
def test_an_adapter_of_something_else_changes_nothing(change: dict[str, Tensor], told: str) -> None:
    network = two_layers()
    with pytest.raises(ValueError, match=told):
        merge_lora(network, change)
    for own, other in zip(network.parameters(), two_layers().parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("name", needed_files(1))
def test_a_missing_file_is_named_with_its_owner(weights: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(weights, tmp_path / "copy")
    for file in folder.glob(name):
        file.unlink()
    with pytest.raises(PerceptualFilesError) as caught:
        open_refiner(folder, CPU)
    line = str(caught.value)
    assert f"needs {name} in {folder}" in line and "\n" not in line
    assert "gated" in line and "Stability AI Community License" in line and "Apache 2.0" in line


def test_without_diffusers_the_extra_is_named(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(PerceptualFilesError, match=r"sr-distillery\[diffusion\]"):
        open_refiner(weights, CPU)


def test_the_teacher_has_an_adapter_of_its_own(weights: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(weights, tmp_path / "copy")
    (folder / "lora/teacher.safetensors").unlink()
    assert open_refiner(folder, CPU, tiling=SMALL).steps == 1
    with pytest.raises(PerceptualFilesError, match=r"teacher\.safetensors"):
        open_refiner(folder, CPU, steps=4, tiling=SMALL)


def test_files_that_do_not_fit_are_named(weights: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(weights, tmp_path / "copy")

    def refused(told: str, tiling: Tiling = SMALL) -> None:
        with pytest.raises(PerceptualFilesError, match=told) as caught:
            open_refiner(folder, CPU, tiling=tiling)
        assert "\n" not in str(caught.value)

    refused("tiles of 512 px are more than the 256 px", Tiling())
    torch.save(torch.zeros(7, 31), folder / "prompts/prompt_embeds.pt")
    refused(r"prompt_embeds.pt holds \[7, 31\]")
    (folder / "prompts/prompt_embeds.pt").write_bytes(b"nothing")
    refused("prompt_embeds.pt cannot be read")
    save_file({"nothing": torch.zeros(1)}, folder / "lora/vae.safetensors")
    refused("vae.safetensors is no adapter of")
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps({**config, "latent_channels": 4}))
    refused("vae cannot be read as AutoencoderKL|latents of 4 channels")
    (folder / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    refused("transformer cannot be read as SD3Transformer2DModel")
