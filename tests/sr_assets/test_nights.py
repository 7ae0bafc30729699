"""Nights: what is measured again, what is compared, and what is said of benchmark images."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from PIL import Image
from upath import UPath

from sr_assets.assets import bronze
from sr_assets.automation.nightly import CHECK, nightly_asset
from sr_assets.automation.nights import Night, measure_night, night_from_json
from sr_assets.automation.originals import Checked, compare_with_source
from sr_assets.graph import Graph
from sr_assets.lineage.build import build
from sr_assets.lineage.dagster_assets import to_asset
from sr_assets.lineage.records import current_output
from sr_assets.lineage.stage import Ref, Stage, StageContext
from sr_assets.recipe.models import Recipe
from sr_assets.sources.finding import fingerprint
from sr_assets.stores.manifest import MANIFEST, ManifestRow, from_parquet, to_parquet


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(str(tmp_path)) as found:
        yield found


class Bench:
    """A benchmark of two files, and a model whose PSNR-Y is what is written in them, plus drift."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder, self.instance = folder, instance
        self.source = folder / "source"
        self.source.mkdir()
        for name, psnr in (("a.png", "30.0"), ("b.png", "28.0")):
            (self.source / name).write_text(psnr)
        self.drift: dict[str, float] = {}
        self.bias = 0.0

    def graph(self) -> Graph:
        source = {"kind": "folder", "path": str(self.source)}
        recipe = Recipe.model_validate(
            {
                "name": "bench", "root": str(self.folder / "root"),
                "datasets": {"photos": {"source": source}},
                "benchmarks": {"bench": {"source": source}},
            }
        )  # fmt: skip
        module = ("sr_assets.lineage.stage",)
        stages = [
            Stage(
                "bronze/images", "", "g", self.bronze, module, partitions="source",
                outside=lambda p: fingerprint(recipe.benchmarks["bench"].source),
            ),
            Stage(
                "model/m/evaluation", "", "g", self.evaluate, module, partitions="benchmark",
                inputs=lambda p: [Ref("bronze/images", p)], settings={"bias": self.bias},
            ),
        ]  # fmt: skip
        return Graph(recipe, UPath(self.folder / "root"), {s.key: s for s in stages})

    def bronze(self, context: StageContext) -> dict[str, Any]:
        rows = []
        for file in sorted(self.source.iterdir()):
            digest = context.output.write_bytes(f"files/{file.name}", file.read_bytes())
            rows.append(ManifestRow(file.name, digest, 9, 9, "RGB", 4, "ok", ""))
        context.output.write_bytes(MANIFEST, to_parquet(rows))
        return {}

    def evaluate(self, context: StageContext) -> dict[str, Any]:
        bronze = context.input("bronze/images", context.partition)
        images = [
            {
                "name": name,
                "psnr_y": float(bronze.read_bytes(f"files/{name}"))
                + self.bias
                + self.drift.get(name, 0.0),
            }
            for name in ("a.png", "b.png")
        ]
        mean = sum(image["psnr_y"] for image in images) / 2
        results = {"name": "m", "images": images, "mean": {"psnr_y": mean}}
        context.output.write_json("results.json", results)
        return {}

    def make(self) -> None:
        graph = self.graph()
        assets = [to_asset(stage, graph) for stage in graph.stages.values()]
        job = dg.Definitions(assets=assets).resolve_implicit_global_asset_job_def()
        assert not build(graph, job, self.instance, set(graph.refs()), lambda line: None).failed

    def measure(self, last: Night | None) -> Night:
        night = measure_night(self.graph(), self.instance, last, lambda line: None)
        return night_from_json(json.loads(json.dumps(night.to_json())))


@pytest.fixture
def bench(tmp_path: Path, instance: dg.DagsterInstance) -> Bench:
    made = Bench(tmp_path, instance)
    made.make()
    return made


def test_a_row_that_breaks_is_named_and_the_night_goes_on(bench: Bench) -> None:
    def broken(context: StageContext) -> dict[str, Any]:
        raise ValueError("weights.safetensors cannot be read\nand more")

    bench.evaluate = broken  # type: ignore[method-assign]
    night = bench.measure(None)
    assert night.problems == [
        "benchmark bench: model/m/evaluation: weights.safetensors cannot be read"
    ]


def test_a_night_that_moved_names_row_benchmark_and_image(bench: Bench) -> None:
    first = bench.measure(None)
    (row,) = first.rows
    assert (row.row, row.benchmark, row.psnr_y) == ("m", "bench", 29.0)
    assert row.images == {"a.png": 30.0, "b.png": 28.0}
    assert (first.problems, first.left_out, first.moved) == ([], [], 0.0)

    bench.drift = {"a.png": 0.009}
    second = bench.measure(first)
    assert second.problems == [] and second.moved == pytest.approx(0.009)
    bench.drift = {"a.png": 0.009, "b.png": -0.32}
    third = bench.measure(second)
    assert [line.split(", and")[0] for line in third.problems] == [
        "m on bench: PSNR-Y of b.png moved by -0.320 dB (28.000 -> 27.680) since the last night",
        "m on bench: PSNR-Y of b.png moved by -0.320 dB (28.000 -> 27.680) since its evaluation",
    ]


def test_a_change_of_inputs_is_no_drift(bench: Bench) -> None:
    first = bench.measure(None)
    bench.bias = 1.5
    night = bench.measure(first)  # before the evaluation was made again, too
    assert night.rows[0].psnr_y == 30.5 and night.problems == []
    bench.make()
    assert bench.measure(first).problems == []


def test_a_changed_benchmark_image_is_named(bench: Bench) -> None:
    first = bench.measure(None)
    os.utime(bench.source / "a.png", (1, 1))  # touched, not changed
    assert bench.measure(first).problems == []
    (bench.source / "a.png").write_text("31.0")
    (problem,) = bench.measure(first).problems
    assert problem.startswith("benchmark bench: a.png changed in its source since bronze was made")
    bench.make()
    (problem,) = bench.measure(first).problems
    assert problem == "benchmark bench: a.png is another image than in the last night"
    assert bench.measure(bench.measure(first)).problems == []


def test_rows_that_are_not_made_yet_are_left_out(bench: Bench) -> None:
    graph = bench.graph()
    stage = graph.stages["model/m/evaluation"]
    missing = replace(
        stage,
        key="model/n/evaluation",
        inputs=lambda p: [Ref("bronze/images", p), Ref("bronze/images", "photos")],
    )
    output = current_output(bench.instance, graph, Ref("bronze/images", "photos"))
    assert output is not None
    for file in Path(str(output.path)).rglob("*.json"):
        file.unlink()
    both = Graph(graph.recipe, graph.root, {**graph.stages, "model/n/evaluation": missing})
    night = measure_night(both, bench.instance, None, lambda line: None)
    assert [row.row for row in night.rows] == ["m"]
    assert night.left_out == ["model/n/evaluation[bench]: bronze/images[photos] has not been made"]


def test_the_asset_keeps_nights_draws_curves_and_fails_its_check(bench: Bench) -> None:
    def night() -> tuple[Mapping[str, Any], bool, str]:
        result = dg.materialize(
            [nightly_asset(bench.graph())], instance=bench.instance, raise_on_error=True
        )
        (made,) = result.asset_materializations_for_node("evaluation__nightly")
        (check,) = result.get_asset_check_evaluations()
        assert check.check_name == CHECK
        versions = made.tags or {}
        return made.metadata, check.passed, versions["dagster/data_version"]

    metadata, passed, version = night()
    assert passed and metadata["psnr_y m on bench"].value == 29.0
    assert night()[1:] == (True, version)  # the same content
    bench.drift = {"b.png": 0.5}
    metadata, passed, other = night()
    assert not passed and other != version
    assert "m on bench: PSNR-Y of b.png" in metadata["problems"].value
    assert metadata["largest_move_db"].value == 0.5
    assert Path(metadata["record"].value).is_file()


# --- Images of benchmarks, with bronze as it is

_DATASETS = {"photos": {"source": {"kind": "builtin", "images": ["astronaut.png"]}}}  # not made


class Originals:
    """A benchmark of real files, of which bronze alone is made."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder, self.instance = folder, instance
        self.images = folder / "images"
        self.images.mkdir()
        for name in ("a.png", "b.png", "c.png"):
            self.draw(name)
        self.source: dict[str, Any] = {"kind": "folder", "path": str(self.images)}
        self.lr: str | None = None

    def draw(self, name: str, seed: int = 0, side: int = 32) -> Path:
        """Writes one picture, as a new file: bronze holds a link to the one before."""
        file = self.images / name
        file.unlink(missing_ok=True)
        pixels = np.random.default_rng([seed, *name.encode()]).integers(0, 256, (side, side, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        return file

    def graph(self) -> Graph:
        recipe = Recipe.model_validate(
            {
                "name": "bench", "scale": 4, "datasets": _DATASETS,
                "benchmarks": {"bench": {"source": self.source, "lr": self.lr}},
            }
        )  # fmt: skip
        stages = {stage.key: stage for stage in bronze.stages(recipe)}
        return Graph(recipe, UPath(self.folder / "root"), stages)

    def make(self) -> None:
        graph = self.graph()
        assets = [to_asset(stage, graph) for stage in graph.stages.values()]
        job = dg.Definitions(assets=assets).resolve_implicit_global_asset_job_def()
        wanted = {Ref(bronze.KEY, "bench")}
        assert not build(graph, job, self.instance, wanted, lambda line: None).failed

    def night(self, last: Night | None = None) -> Night:
        return measure_night(self.graph(), self.instance, last, lambda line: None)

    def said(self, last: Night | None = None) -> list[str]:
        """What is wrong, without the way to mend it."""
        night = self.night(last)
        assert night.left_out == []
        return [line.removeprefix("benchmark bench: ").split(";")[0] for line in night.problems]


@pytest.fixture
def originals(tmp_path: Path, instance: dg.DagsterInstance) -> Originals:
    return Originals(tmp_path, instance)


def test_an_image_that_went_or_came_is_named_in_the_source_and_then_since_the_last_night(
    originals: Originals,
) -> None:
    originals.make()
    first = originals.night()
    assert first.problems == [] and set(first.originals["bench"]) == {"a.png", "b.png", "c.png"}
    (originals.images / "b.png").unlink()
    originals.draw("d.png")
    assert originals.said(first) == [
        "b.png is no longer in its source",
        "d.png was added to its source since bronze was made",
    ]
    originals.make()
    assert originals.said(first) == [
        "b.png was there in the last night and is gone",
        "d.png was not there in the last night",
    ]
    assert originals.said(originals.night()) == []
    originals.images.rename(originals.folder / "elsewhere")
    assert originals.said() == [f"folder {originals.images} is gone"]


def test_a_file_in_quarantine_may_be_touched_and_may_go(originals: Originals) -> None:
    broken = originals.images / "broken.png"
    broken.write_bytes(b"no picture")
    (originals.images / "again.png").write_bytes((originals.images / "a.png").read_bytes())
    originals.make()
    for file in originals.images.iterdir():
        os.utime(file, (1, 1))
    assert originals.said() == []
    broken.write_bytes(b"no picture either")
    assert originals.said() == ["broken.png changed in its source since bronze was made"]
    broken.unlink()
    assert originals.said() == []


def test_other_bytes_of_equal_size_and_time_are_seen(originals: Originals) -> None:
    originals.make()
    file = originals.images / "b.png"
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.unlink()
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert originals.said() == ["b.png changed in its source since bronze was made"]


def test_what_is_not_read_for_its_size_is_said_and_what_was_touched_comes_first(
    originals: Originals,
) -> None:
    originals.make()
    graph = originals.graph()
    output = current_output(originals.instance, graph, Ref(bronze.KEY, "bench"))
    assert output is not None
    file = originals.draw("c.png", seed=1)
    checked = Checked(room=file.stat().st_size)
    compare_with_source(
        "bench", graph.recipe.benchmarks["bench"], graph.stages[bronze.KEY].outside("bench"),
        output.marker["outside"], from_parquet(output.read_bytes(MANIFEST)), checked,
    )  # fmt: skip
    (problem,) = checked.problems
    assert problem.startswith("benchmark bench: c.png changed in its source")
    (left,) = checked.left_out
    assert left.startswith("benchmark bench: 2 files of ") and "4 GB" in left


def test_lr_that_comes_with_a_benchmark_is_watched(originals: Originals) -> None:
    lr = originals.folder / "lr"
    lr.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.open(originals.images / name).resize((8, 8)).save(lr / name)
    originals.lr = str(lr)
    originals.make()
    for file in lr.iterdir():
        os.utime(file, (1, 1))
    assert originals.said() == []
    (lr / "b.png").unlink()
    Image.open(originals.images / "a.png").resize((8, 8)).save(lr / "b.png")
    (lr / "c.png").unlink()
    assert originals.said() == [
        "(LR) c.png is no longer in its source",
        "(LR) b.png changed in its source since bronze was made",
    ]


@pytest.mark.parametrize("known", [False, True])
def test_an_archive_is_compared_by_what_is_in_it(originals: Originals, known: bool) -> None:
    file = originals.folder / "bench.zip"

    def pack(*names: str) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("broken.png", b"no picture")
            for name in names:
                archive.write(originals.images / name, name)

    pack("a.png", "b.png", "c.png")
    originals.source = {"kind": "archive", "path": str(file)}
    if known:
        originals.source["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    originals.make()
    os.utime(file, (1, 1))
    assert originals.said() == []
    originals.draw("a.png", seed=1)
    originals.draw("d.png")
    pack("a.png", "c.png", "d.png")
    if known:
        (problem,) = originals.said()
        assert problem.startswith(f"archive {file} cannot be compared")
    else:
        assert originals.said() == [
            "b.png is no longer in its source",
            "a.png changed in its source since bronze was made",
            "d.png was added to its archive",
        ]
    file.unlink()
    assert originals.said() == [f"archive {file} is gone"]


def test_a_list_of_urls_may_be_touched() -> None:
    source = {"kind": "url_list", "path": "list.txt"}
    recipe = Recipe.model_validate(
        {"name": "x", "datasets": _DATASETS, "benchmarks": {"bench": {"source": source}}}
    )
    checked = Checked()

    def compare(now: dict[str, str]) -> None:
        before = {"list": "9-1", "list.sha256": "aa"}
        compare_with_source("bench", recipe.benchmarks["bench"], now, before, [], checked)

    compare({"list": "9-2", "list.sha256": "aa"})
    assert checked.problems == []
    compare({"list": "9-2", "list.sha256": "bb"})
    (problem,) = checked.problems
    assert "list.sha256 changed in its source" in problem


def test_a_source_that_the_recipe_names_anew_is_left_out(originals: Originals) -> None:
    originals.make()
    originals.source = {"kind": "folder", "path": str(originals.folder)}
    night = originals.night()
    assert night.problems == []
    assert "the recipe names another source" in night.left_out[0]
