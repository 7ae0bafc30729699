"""`srd compare` onto a page: any pictures, any files that spandrel loads, all in one file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from sr_assets.cli import main
from sr_assets.compare_page import compare_on_page
from sr_assets.lineage.stage import StageError
from sr_models.networks import build_network

SIZE = {"num_feat": 4, "num_conv": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compare")
    random = np.random.default_rng(0)
    for name, (height, width) in {"a.png": (48, 66), "deep/b.png": (40, 40)}.items():
        path = root / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    for seed, name in enumerate(("one", "two", "other/one")):
        torch.manual_seed(seed)
        network = build_network("Compact", 4, SIZE)
        path = root / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file({k: v * 0.5 for k, v in network.state_dict().items()}, path)
    return root


def test_a_folder_becomes_one_page(folder: Path) -> None:
    models = [str(folder / name) for name in ("one.safetensors", "two.safetensors")]
    page = folder / "out" / "page.html"
    rows = compare_on_page(folder / "pictures", models, page, root=folder, device="cpu")
    assert [row.name for row in rows] == ["bicubic", "one", "two"]
    text = page.read_text()
    pictures = json.loads(text.split('id="pictures">')[1].split("</script>")[0])
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [image["name"] for image in data["images"]] == ["a.png", "deep/b.png"]
    assert data["images"][0]["width"] == 64  # cropped to a multiple of the scale
    shown = {s["src"] for image in data["images"] for s in image["sources"].values()}
    assert shown <= set(pictures) and len(shown) == 2 * 5
    assert 'id="checks"' not in text and "leaderboard.json" not in text
    assert f"{rows[1].psnr_y:.2f}" in text


def test_two_models_of_one_name_stay_apart(folder: Path) -> None:
    models = [str(folder / name) for name in ("one.safetensors", "other/one.safetensors")]
    source, page = folder / "pictures" / "a.png", folder / "same.html"
    rows = compare_on_page(source, models, page, root=folder, device="cpu")
    assert [row.name for row in rows] == ["bicubic", "one", "one (2)"]
    assert rows[1].psnr_y != rows[2].psnr_y


def test_the_command_writes_what_the_name_of_its_output_says(folder: Path) -> None:
    arguments = ["compare", str(folder / "pictures"), str(folder / "one.safetensors")]
    page = folder / "command.html"
    said = CliRunner().invoke(main, [*arguments, "-o", str(page), "--device", "cpu", "--json"])
    assert said.exit_code == 0, said.output
    assert [row["name"] for row in json.loads(said.output)] == ["bicubic", "one"]
    assert page.read_text().startswith("<!doctype html>")


def test_a_folder_without_pictures_is_named(folder: Path) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    with pytest.raises(StageError, match="empty holds no pictures"):
        compare_on_page(
            folder / "empty",
            [str(folder / "one.safetensors")],
            folder / "no.html",
            root=folder,
            device="cpu",
        )
