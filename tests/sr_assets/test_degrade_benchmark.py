"""The peer of `benchmarks/degrade.py` does what it stands for; the script ends as all do."""

import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def torch_degrade(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("torch_degrade")


@pytest.fixture
def degrade(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()
    yield importlib.import_module("degrade")
    torch.set_num_threads(threads)


def photo_batch(samples: int, side: int) -> torch.Tensor:
    photo = torch.from_numpy(np.ascontiguousarray(skimage.data.astronaut()))
    crops = [photo[n : n + side, 2 * n : 2 * n + side] for n in range(samples)]
    return torch.stack(crops).permute(0, 3, 1, 2) / 255


def test_the_peer_gives_whole_levels_and_the_same_from_one_seed(torch_degrade: ModuleType) -> None:
    hr = photo_batch(2, 64)
    for seed in range(12):  # so that every decision of a batch falls both ways
        first, again = (
            torch_degrade.degrade_batch(hr, np.random.default_rng(seed)) for _ in range(2)
        )
        assert torch.equal(first, again)
        assert first.shape == (2, 3, 16, 16) and first.min() >= 0 and first.max() <= 1
        levels = first * 255
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
        assert (first.mean() - hr.mean()).abs() < 0.1


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_the_jpeg_of_the_peer_is_near_a_real_one(torch_degrade: ModuleType, quality: int) -> None:
    x = photo_batch(1, 250)  # no multiple of 16
    ours = torch_degrade.jpeg(x, torch.tensor([float(quality)]))[0].permute(1, 2, 0) * 255
    encoded = io.BytesIO()
    pixels = (x[0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=quality, subsampling="4:2:0")
    real = np.asarray(Image.open(encoded), np.float32)
    error = np.square(ours.numpy() - real)[:240, :240].mean()  # the edges are padded differently
    assert 10 * np.log10(255**2 / error) > 38


def test_the_noise_of_the_peer_has_the_stated_strength(
    torch_degrade: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.full((2, 3, 128, 128), 0.4)
    draw = torch.Generator().manual_seed(1)
    monkeypatch.setattr(torch_degrade, "_GREY_PROBABILITY", 0.0)
    monkeypatch.setattr(torch_degrade, "_SIGMA", (0.05, 0.05))
    monkeypatch.setattr(torch_degrade, "_PHOTONS", (50.0, 50.0))
    assert torch_degrade.add_gaussian(x, draw).std().item() == pytest.approx(0.05, rel=0.02)
    x[..., 0] = torch.linspace(0, 1, 128)  # more values than one, as a photo has
    noisy = torch_degrade.add_poisson(x, draw)[..., 1:]
    assert noisy.std().item() == pytest.approx((0.4 / 50) ** 0.5, rel=0.02)
    assert noisy.mean().item() == pytest.approx(0.4, abs=0.002)
    monkeypatch.setattr(torch_degrade, "_GREY_PROBABILITY", 1.0)
    for add in (torch_degrade.add_gaussian, torch_degrade.add_poisson):
        noise = add(x, draw)[..., 1:] - x[..., 1:]
        torch.testing.assert_close(noise[:, 0], noise[:, 1])
        assert noise.std() > 0.04


def test_kernels_of_the_peer_sum_to_one_and_a_pulse_leaves_a_picture(
    torch_degrade: ModuleType,
) -> None:
    rng = np.random.default_rng(5)
    x = photo_batch(20, 32)
    kernels = torch_degrade._batched([torch_degrade.blur_kernel(rng) for _ in range(20)])
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(20))
    assert kernels.min() >= 0
    assert torch_degrade.filter_batch(x, kernels).var() < x.var()
    pulses = torch_degrade._batched([np.ones((1, 1))] * 20)
    assert torch.equal(torch_degrade.filter_batch(x, pulses), x)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--batches", "1", "--repeats", "1"], "degrade"),
        (["--gold", "--patches", "8", "--cores", "2", "--repeats", "1"], "degrade_gold"),
    ],
)
def test_the_script_ends_with_its_headline(
    degrade: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    name: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["degrade", *words])
    assert not degrade.main()
    headline = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(headline) >= {"name", "ratio", "peer", "unit", "repeats"}
    assert headline["name"] == name
    assert headline["ratio"] > 0
