"""`srd compare` onto a page: any pictures, any files that spandrel loads, all in one file."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from sr_assets.cli import main
from sr_assets.compare import CompareRow, table_lines
from sr_assets.compare_page import compare_on_page
from sr_assets.lineage.stage import StageError
from sr_assets.report.numbers import giga, short_count
from sr_models.metrics.cost import multiply_adds
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
    network = build_network("Compact", 4, SIZE)
    assert rows[1].parameters == sum(p.numel() for p in network.parameters())
    assert rows[1].multiply_adds == multiply_adds(network, 4) == rows[2].multiply_adds
    assert (rows[0].parameters, rows[0].multiply_adds) == (None, None)
    assert short_count(rows[1].parameters) in text and giga(rows[1].multiply_adds) in text
    assert text.count('class="pareto"') == 3  # parameters, multiply-adds, seconds
    for read in (*map(Path, models), folder / "pictures" / "deep" / "b.png"):
        assert hashlib.sha256(read.read_bytes()).hexdigest()[:12] in text


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


def test_the_table_has_costs_and_fits_a_terminal() -> None:
    offsets = (0.0, 0.0, 0.0)
    rows = [
        CompareRow("bicubic", 28.4314, 0.81129, offsets, 0.0123),
        CompareRow("n" * 44, math.inf, 1.0, offsets, 1234.5, 12_345_678, 456_700_000_000),
    ]
    head, first, second = table_lines(rows)
    assert head.split() == ["PSNR-Y", "dB", "SSIM-Y", "parameters", "G", "mult-adds/MP", "seconds"]
    assert first.split() == ["bicubic", "28.43", "0.8113", "0.0123"]
    assert second.split()[1:] == ["identical", "1.0000", "12.3", "M", "457", "1,234"]
    assert {len(line) for line in (head, first, second)} == {100}


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
