"""The metrics that a recipe asks for by name, with weights that lie where the real ones would."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from skimage.data import astronaut
from torch import Tensor, nn
from torchvision import models

from sr_models.metrics.catalogue import FACTS, ON_REQUEST, module_of, open_metrics
from sr_models.metrics.niqe import Natural, niqe, read_parameters


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of weights there is."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("SRD_WEIGHTS", str(folder))
    return folder


def photo() -> tuple[np.ndarray, np.ndarray]:
    """HR, and a spoiled copy."""
    hr = np.ascontiguousarray(astronaut()[:64, 200:272])
    shift = np.random.default_rng(0).integers(-40, 41, hr.shape)
    return np.clip(hr.astype(int) + shift, 0, 255).astype(np.uint8), hr


def unit(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1)[None] / np.float32(255))


def random_features(architecture: str, layers: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = getattr(models, architecture)(weights=None).features[:layers].state_dict()
    return {
        f"features.{name}": torch.randn(t.shape, generator=generator)
        * ((2 / t[0].numel()) ** 0.5 if name.endswith("weight") else 0.1)
        for name, t in shapes.items()
    }


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("lpips", "alexnet-owt-7be5be79.pth"),
        ("dists", "vgg16-397923af.pth"),
        ("niqe", "niqe_modelparameters.mat"),
    ],
)
def test_a_missing_file_is_told_in_one_line(own_folder: Path, name: str, file: str) -> None:
    with pytest.raises(ValueError) as error:
        open_metrics([name])
    told = str(error.value)
    assert told.startswith(f"metric {name!r} needs the file {file}")
    assert "\n" not in told and str(own_folder) in told


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no metric 'psnr': .*lpips, dists, niqe or pyiqa:NAME"):
        module_of("psnr")


def test_everything_has_facts() -> None:
    assert set(ON_REQUEST) < set(FACTS)
    assert {name for name, facts in FACTS.items() if facts.lower_is_better} == set(ON_REQUEST)


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_distances_are_zero_for_equal_pictures_and_grow(own_folder: Path, name: str) -> None:
    pytest.importorskip("torchmetrics")
    torch.save(random_features("alexnet", 12), own_folder / "alexnet.pth")
    torch.save(random_features("vgg16", 30), own_folder / "vgg16.pth")
    (metric,) = open_metrics([name, name])
    sr, hr = photo()
    half = ((sr.astype(int) + hr) // 2).astype(np.uint8)
    far, mid = metric.score(sr, hr), metric.score(half, hr)
    assert far is not None and mid is not None
    assert metric.score(hr, hr) == 0.0 < mid < far
    assert metric.score(sr[:15], hr[:15]) is None


def test_dists_is_torchmetrics_with_the_same_weights(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dists = pytest.importorskip("torchmetrics.functional.image.dists")
    state = random_features("vgg16", 30)
    torch.save(state, own_folder / "vgg16.pth")

    def loaded(weights: object = None) -> nn.Module:
        network = models.vgg16(weights=None)
        network.load_state_dict(state, strict=False)
        return network

    monkeypatch.setattr(dists, "vgg16", loaded)
    sr, hr = photo()
    theirs = float(dists.DISTSNetwork()(unit(sr), unit(hr)).detach())
    (metric,) = open_metrics(["dists"])
    assert metric.score(sr, hr) == pytest.approx(theirs, abs=2e-5)


def test_weights_of_another_network_are_named(own_folder: Path) -> None:
    pytest.importorskip("torchmetrics")
    torch.save(random_features("alexnet", 12), own_folder / "vgg16.pth")
    with pytest.raises(ValueError, match=r"vgg16\.pth does not fit VGG-16"):
        open_metrics(["dists"])


def natural() -> Natural:
    random = np.random.default_rng(0)
    spread = random.normal(size=(36, 36)) / 6
    return Natural(np.full(36, 0.8), spread @ spread.T + 0.05 * np.eye(36))


def test_niqe_reads_the_original_file_and_no_other(own_folder: Path) -> None:
    hr = np.ascontiguousarray(astronaut()[:200, :300])
    place = own_folder / "niqe_modelparameters.mat"
    own = natural()
    savemat(place, {"mu_prisparam": own.mean[None], "cov_prisparam": own.covariance})
    (metric,) = open_metrics(["niqe"])
    assert metric.score(hr, np.zeros_like(hr)) == niqe(hr, own)
    savemat(place, {"mu_prisparam": own.mean[None, :30], "cov_prisparam": own.covariance})
    with pytest.raises(ValueError, match="36 features, not 30"):
        open_metrics(["niqe"])
    place.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no parameters of NIQE"):
        open_metrics(["niqe"])


def test_niqe_does_not_see_what_is_beyond_whole_blocks_and_needs_two() -> None:
    hr = np.ascontiguousarray(astronaut()[:200, :300])
    spoiled = hr.copy()
    spoiled[192:] = 0
    assert niqe(spoiled, natural()) == niqe(hr, natural())
    assert niqe(hr[:100, :100], natural()) is None
    assert niqe(np.full((200, 200, 3), 90, np.uint8), natural()) is None


@pytest.mark.shared
def test_niqe_of_a_natural_photo_is_pyiqa_s_and_noise_is_worse(shared_data: Path) -> None:
    """3.213 for baby and 5.732 for Set14's first, by pyiqa 0.1.16 with the same parameters."""
    from PIL import Image

    parameters = read_parameters(shared_data / "metrics" / "niqe_modelparameters.mat")
    for place, expected in (("Set5", 3.213), ("Set14", 5.732)):
        file = shared_data / "benchmarks" / place / "img_001_SRF_4_HR.png"
        image = np.array(Image.open(file).convert("RGB"))
        found = niqe(image, parameters)
        assert found == pytest.approx(expected, abs=0.003)
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    bad = niqe(noise, parameters)
    assert bad is not None and bad > 20


def test_pyiqa_that_is_not_installed_is_told_with_its_licence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ValueError, match=r"'pyiqa:musiq' needs the package pyiqa: .*iqa.*non-comm"):
        open_metrics(["pyiqa:musiq"])


def test_a_metric_of_pyiqa_brings_its_direction_and_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The package's interface, restated: the package itself is not a dependency of the tests."""

    class Network:
        def __init__(self, mode: str, lower: bool, said: str) -> None:
            self.metric_mode, self.lower_better, self.score_range = mode, lower, said

        def __call__(self, *pictures: Tensor) -> Tensor:
            return torch.stack([p.mean() for p in pictures]).sum()[None]

    known = {"full": Network("FR", True, "0, 1"), "blind": Network("NR", False, "~0, ~100")}
    package = types.ModuleType("pyiqa")
    package.list_models = lambda: list(known)  # type: ignore[attr-defined]
    package.create_metric = lambda name, device: known[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyiqa", package)
    full, blind = open_metrics(["pyiqa:full", "pyiqa:blind"])
    white, black = np.full((8, 8, 3), 255, np.uint8), np.zeros((8, 8, 3), np.uint8)
    assert (full.score(white, white), blind.score(white, white)) == (2.0, 1.0)
    assert (full.score(black, white), blind.score(black, white)) == (1.0, 0.0)
    assert (full.facts.lower_is_better, full.facts.lowest, full.facts.highest) == (True, 0, 1)
    assert (blind.facts.lower_is_better, blind.facts.lowest) == (False, None)
    with pytest.raises(ValueError, match="pyiqa has none of that name"):
        open_metrics(["pyiqa:other"])


def test_a_real_metric_of_pyiqa_runs() -> None:
    pytest.importorskip("pyiqa")
    (metric,) = open_metrics(["pyiqa:psnr"])
    sr, hr = photo()
    error = np.mean((sr.astype(float) - hr) ** 2)
    assert metric.score(sr, hr) == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
