"""Datasets and benchmarks that bring their own LR: pairs kept, cut and measured as they came."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from sr_assets.assets.bronze import load_images
from sr_assets.definitions import build_defs
from sr_assets.evaluation.pixels import read_png
from sr_assets.graph import Graph, build_graph
from sr_assets.lineage.build import build
from sr_assets.lineage.records import current_output
from sr_assets.lineage.stage import Ref
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output
from sr_assets.stores.manifest import ManifestRow, from_parquet
from sr_assets.stores.pairs import AppliedStep, PairReader
from sr_assets.stores.patches import PatchReader

SCALE = 2


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


class Project:
    """Folders of pictures and the graph over them, built by Dagster."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder, self.instance = folder, instance
        for seed in range(3):
            save(folder / "hr" / f"{seed}.png", noise(seed, 70, 65))
            save(folder / "lr" / "X2" / f"{seed}x2.png", noise(100 + seed, 35, 32))
        save(folder / "bench" / "a_HR.png", noise(50, 40, 40))
        save(folder / "bench_lr" / "a_LR.png", noise(51, 20, 20))

    def graph(self) -> Graph:
        def paired(hr: str, lr: Any) -> dict[str, Any]:
            return {"source": {"kind": "folder", "path": str(self.folder / hr)}, "lr": lr}

        return build_graph(
            Recipe.model_validate(
                {
                    "name": "paired",
                    "root": str(self.folder / "data"),
                    "scale": SCALE,
                    "datasets": {"photos": paired("hr", str(self.folder / "lr"))},
                    "benchmarks": {
                        "bench": paired(
                            "bench", {"kind": "folder", "path": str(self.folder / "bench_lr")}
                        )
                    },
                    "silver": {"min_side": 32, "patch_size": 16, "stride": 10},
                    "compute": {"workers": 2, "device": "cpu"},
                }
            )
        )

    def build(self, *wanted: str) -> set[str]:
        graph = self.graph()
        job = build_defs(graph).resolve_implicit_global_asset_job_def()
        result = build(graph, job, self.instance, graph.select(list(wanted)), lambda line: None)
        assert not result.failed
        return {str(ref) for ref in result.made}

    def output(self, asset: str, partition: str) -> Output:
        found = current_output(self.instance, self.graph(), Ref(asset, partition))
        assert found is not None
        return found

    def rows(self) -> dict[str, ManifestRow]:
        data = self.output("bronze/images", "photos").read_bytes("manifest.parquet")
        return {row.path: row for row in from_parquet(data)}


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:
        yield Project(tmp_path, instance)


def test_gold_is_cut_from_the_lr_that_came(project: Project) -> None:
    project.build("gold/pairs")
    rows = load_images(project.output("bronze/images", "photos"))
    assert {row.path: row.lr for row in rows} == {f"{n}.png": f"X2/{n}x2.png" for n in range(3)}
    patches = PatchReader(project.output("silver/patches", "photos"))
    pairs = PairReader(project.output("gold/pairs", "photos"))
    assert (pairs.variants, pairs.size) == (1, 8)
    assert len(patches) > 20
    for n in range(len(patches)):
        seed = int(Path(patches.images[patches.image[n]]).stem)
        y, x = patches.y[n] // SCALE, patches.x[n] // SCALE
        expected = noise(100 + seed, 35, 32)[y : y + 8, x : x + 8]
        np.testing.assert_array_equal(pairs.lr(n, 0), expected)
    came = (AppliedStep("paired", "as it came", {}),)
    assert [steps for _, _, steps in pairs.steps()] == [came] * len(patches)

    save(project.folder / "lr" / "X2" / "1x2.png", noise(7, 35, 32))
    assert project.build("gold/pairs") == {
        *("bronze/images[photos]", "bronze/overlap[photos]"),
        *("silver/patches[photos]", "gold/pairs[photos]"),
    }


def test_pairs_that_are_none_are_named_and_the_rest_goes_on(project: Project) -> None:
    save(project.folder / "hr" / "alone.png", noise(20, 40, 40))
    save(project.folder / "lr" / "nobody.png", noise(21, 20, 20))
    save(project.folder / "hr" / "odd.png", noise(22, 60, 48))
    save(project.folder / "lr" / "odd_x2.png", noise(23, 30, 25))
    save(project.folder / "hr" / "torn.png", noise(24, 40, 40))
    (project.folder / "lr" / "tornx2.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    project.build("gold/pairs")
    rows = project.rows()
    assert {path: row.reason for path, row in rows.items() if path != "torn.png"} == {
        **{f"{n}.png": "" for n in range(3)},
        "alone.png": "no LR is named like alone.png",
        "(LR) nobody.png": "no HR is named like nobody.png",
        "odd.png": "its LR odd_x2.png is 25x30 px, but HR is 48x60 px: at scale 2 LR must be "
        "24x30 px",
    }
    assert rows["torn.png"].reason.startswith("its LR tornx2.png: ")
    output = project.output("bronze/images", "photos")
    kept = {name for name in output.marker["files"] if name.startswith(("files/", "lr/"))}
    good = range(3)
    assert kept == {f"files/{n}.png" for n in good} | {f"lr/X2/{n}x2.png" for n in good}


def test_lr_of_hr_in_quarantine_goes_to_no_other(project: Project) -> None:
    (project.folder / "hr" / "a").mkdir()
    (project.folder / "hr" / "a" / "same.png").write_bytes(b"no picture")
    save(project.folder / "hr" / "b" / "same.png", noise(30, 40, 40))
    save(project.folder / "lr" / "a" / "same.png", noise(31, 20, 20))
    project.build("gold/pairs")
    rows = project.rows()
    assert rows["b/same.png"].reason == "no LR is named like b/same.png"
    assert rows["(LR) a/same.png"].reason == "its HR a/same.png is in quarantine"


def test_a_benchmark_is_measured_on_its_own_lr(project: Project) -> None:
    project.build("evaluation/baselines")
    baselines = project.output("evaluation/baselines", "bench")
    (lr,) = (name for name in baselines.marker["files"] if name.startswith("lr/"))
    np.testing.assert_array_equal(read_png(baselines, lr), noise(51, 20, 20))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"silver": {"stride": 9}}, r"silver\.stride 9 is no multiple of scale 2: datasets\.a has"),
        ({"benchmarks": {"b": {"damaged": True}}}, r"benchmarks\.b\.damaged: gold\.degradation"),
        (
            {"benchmarks": {"b": {"damaged": True, "lr": "x"}}, "gold": "realworld"},
            r"benchmarks\.b\.damaged: it brings its own LR",
        ),
        ({"datasets": {"b": {"damaged": True}}}, r"datasets\.b\.damaged: only a benchmark has it"),
        (
            {"models": {"m": {"online": True}}, "gold": "realworld"},
            r"models\.m\.online: datasets\.a",
        ),
        ({"models": {"m": {"online": True}}}, r"models\.m\.online: gold\.degradation bicubic"),
    ],
)
def test_what_does_not_go_together(change: dict[str, Any], said: str) -> None:
    source = {"kind": "folder", "path": "x"}
    data: dict[str, Any] = {
        "name": "t",
        "scale": 2,
        "datasets": {"a": {"source": source, "lr": "y"}},
        "silver": change.get("silver", {}),
        "gold": {"degradation": change.get("gold", "bicubic")},
    }
    for section in ("datasets", "benchmarks"):
        for name, fields in change.get(section, {}).items():
            data.setdefault(section, {})[name] = {"source": source, **fields}
    for name, fields in change.get("models", {}).items():
        network = {"architecture": "paragonsr2_realtime"}
        data.setdefault("models", {})[name] = {"kind": "plain", "network": network, **fields}
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate(data)
