"""A sample explained from stores that the gold stage made, and from stores that went wrong."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from sr_assets.cli import main
from sr_assets.explain import Explained, explain_sample, explained_json, explained_lines
from sr_assets.explain_sheet import contact_sheet
from sr_assets.graph import Graph, build_graph
from sr_assets.home import open_instance
from sr_assets.lineage.code_version import code_version, module_digests
from sr_assets.lineage.records import address_of, asset_key
from sr_assets.lineage.stage import Ref, StageContext, StageError
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output
from sr_assets.stores.pairs import (
    PARAMS,
    AppliedStep,
    PairReader,
    PairWriter,
    SampleSteps,
    params_table,
)
from sr_assets.stores.patches import TRAIN, VALIDATION, PatchPositions, PatchWriter
from sr_assets.stores.shards import DamagedStoreError

SILVER, GOLD = Ref("silver/patches", "photos"), Ref("gold/pairs", "photos")
SIDE = 48
EVERY_KIND = {
    "steps": [
        {"kind": "sinc", "size": [15, 15]},
        {"kind": "resize", "factor": [2.0, 2.0]},
        {"kind": "noise", "kinds": ["poisson"]},
        {"kind": "shuffle", "steps": [{"kind": "webp"}, {"kind": "blur", "size": [7, 9]}]},
        {"kind": "resize"},
        {"kind": "jpeg"},
    ]
}
#: Doubles a picture, and so does nothing on the way to an LR of the same size.
DOUBLED = AppliedStep("resize", "nearest", {"height": 2.0 * SIDE, "width": 2.0 * SIDE}, 0)


@dataclass
class Home:
    """A project's folder with its records, and stores that tests put there."""

    folder: Path
    instance: dg.DagsterInstance
    degradation: Any = "realworld"
    recipe: dict[str, Any] = field(default_factory=dict)

    def graph(self) -> Graph:
        given: dict[str, Any] = {
            "name": "test",
            "root": str(self.folder),
            "datasets": {"photos": {"source": {"kind": "folder", "path": "photos"}}},
            "silver": {"patch_size": SIDE},
            "gold": {"degradation": self.degradation, "variants": 2},
            **self.recipe,
        }
        return build_graph(Recipe(**given))

    def explain(self, index: int = 1, variant: int = 0, dataset: str = "photos") -> Explained:
        return explain_sample(self.graph(), self.instance, dataset, index, variant)

    def write_patches(self, hr: np.ndarray, address: str = "a" * 24) -> Output:
        """Silver, by hand: the last patch is for validation."""
        output = OutputFolder(self.graph().folder(SILVER) / address)
        numbers = np.arange(len(hr))
        split = np.where(numbers < len(hr) - 1, TRAIN, VALIDATION)
        positions = PatchPositions(numbers % 2, 100 + numbers, 7 * numbers, split)
        writer = PatchWriter(output, positions, hr.shape[1], ["one.png", "ü\n.png"], {})
        for shard, samples in enumerate(writer.shards):
            writer.write(shard, hr[samples.start : samples.stop])
        done = output.commit({"metadata": {}})
        self.record(SILVER, done)
        return done

    def make_gold(self, silver: Output) -> Output:
        """Gold, by its own stage, with the marker that the lineage gives an output."""
        graph = self.graph()
        stage = graph.stages[GOLD.asset]
        folder = OutputFolder(graph.folder(GOLD) / self._address(silver))
        context = StageContext(
            recipe=graph.recipe,
            ref=GOLD,
            output=folder,
            inputs={SILVER: silver},
            log=lambda line: None,
            observe=lambda values: None,
            bar=_silent,
        )
        metadata = stage.run(context)
        return self.commit(folder, silver, metadata)

    def write_gold(self, silver: Output, lr: np.ndarray, steps: SampleSteps) -> Output:
        """Gold, by hand: one version of each patch, with the same steps."""
        folder = OutputFolder(self.graph().folder(GOLD) / self._address(silver))
        writer = PairWriter(folder, len(lr), 1, lr.shape[1], {})
        for shard, samples in enumerate(writer.shards):
            writer.write(shard, lr[samples.start : samples.stop, None])
        writer.write_params(params_table("by hand", [(steps,)] * len(lr)))
        return self.commit(folder, silver, {})

    def record(self, ref: Ref, output: Output) -> None:
        """Enters a materialisation, as a run of Dagster does."""
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset_key(ref),
                partition=ref.partition,
                metadata={"address": output.path.name, "path": str(output.path)},
            )
        )

    def commit(self, folder: OutputFolder, silver: Output, metadata: dict[str, Any]) -> Output:
        """Completes a gold output as the lineage does, and records it."""
        stage = self.graph().stages[GOLD.asset]
        done = folder.commit(
            {
                "asset": GOLD.asset,
                "partition": GOLD.partition,
                "settings": {**stage.settings, **stage.partition_settings("photos")},
                "inputs": {str(SILVER): silver.data_version},
                "modules": module_digests(stage.modules_of("photos")),
                "outside": {},
                "metadata": metadata,
            }
        )
        self.record(GOLD, done)
        return done

    def _address(self, silver: Output) -> str:
        graph = self.graph()
        stage = graph.stages[GOLD.asset]
        return address_of(stage, GOLD, code_version(stage), {SILVER: silver}, {})


@contextmanager
def _silent(label: str, total: int, unit: str) -> Iterator[Any]:
    yield lambda n: None


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Home(tmp_path, instance)


def photos(count: int, side: int = SIDE) -> np.ndarray:
    """Soft shapes, uint8 [count, side, side, 3]."""
    random = np.random.default_rng(side)
    coarse = random.integers(0, 256, (count, side // 8, side // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)


def enlarged(picture: np.ndarray, side: int) -> np.ndarray:
    return picture.repeat(side // len(picture), 0).repeat(side // len(picture), 1)


def shows(sheet: np.ndarray, picture: np.ndarray) -> bool:
    """Whether the picture is somewhere on the sheet, pixel by pixel."""
    height, width = picture.shape[:2]
    room = np.lib.stride_tricks.sliding_window_view(sheet, (1, 8, 3))[..., 0, 0, :, :]
    for y, x in np.argwhere((room == picture[0, :8]).all((2, 3))):
        if np.array_equal(sheet[y : y + height, x : x + width], picture):
            return True
    return False


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("degradation", ["realworld", "light", EVERY_KIND], ids=str)
def test_the_stored_steps_lead_from_hr_to_the_stored_lr(
    home: Home, degradation: Any, scale: int
) -> None:
    home.degradation, home.recipe = degradation, {"scale": scale}
    hr = photos(3)
    store = PairReader(home.make_gold(home.write_patches(hr)))
    for n, k, steps in store.steps():
        found = home.explain(n, k)
        np.testing.assert_array_equal(found.hr, hr[n])
        np.testing.assert_array_equal(found.lr, store.lr(n, k))
        np.testing.assert_array_equal(found.pictures[-1], found.lr)
        assert (found.steps, found.same, found.changed) == (steps, True, ())
        assert len(found.pictures) == len(steps) and found.scale == scale
        for step, picture in zip(steps, found.pictures, strict=True):
            if step.op == "resize":
                assert picture.shape == (step.numbers["height"], step.numbers["width"], 3)
        assert found.psnr_y is not None and found.psnr_y > 5


def test_bicubic_gold_has_its_one_step(home: Home) -> None:
    home.degradation, home.recipe = "bicubic", {"gold": {"variants": 1}}
    home.make_gold(home.write_patches(photos(2)))
    found = home.explain()
    assert (found.degradation, found.same, found.changed) == ("bicubic", True, ())
    assert [p.shape for p in found.pictures] == [(12, 12, 3)]
    assert "  1  bicubic, antialiased 12×12  12×12 px" in explained_lines(found)


def test_place_version_and_split_are_told(home: Home) -> None:
    home.make_gold(home.write_patches(photos(4)))
    lines = explained_lines(home.explain(2, 1))
    assert lines[0] == "photos patch 2, version 1 of 2: realworld, ×4"
    assert lines[1] == "from one.png at y 102, x 14, 48×48 px, for training"
    # a name that would break the line is quoted
    assert explained_lines(home.explain(3))[1].startswith("from 'ü\\n.png' at y 103, x 21")
    assert home.explain(3).split == "validation"


def test_what_was_drawn_is_kept_when_recipe_and_code_have_moved_on(home: Home) -> None:
    home.make_gold(home.write_patches(photos(2)))
    before = home.explain()
    home.recipe, home.degradation = {"seed": 7}, "light"
    after = home.explain()
    assert (after.degradation, after.steps, after.same) == ("realworld", before.steps, True)
    assert set(after.changed) == {
        "recipe gold.degradation realworld -> light",
        "recipe seed 42 -> 7",
    }
    told = explained_lines(after)
    assert told[-2] == "Made again from the stored numbers by the code of today: the same bytes."
    assert told[-1].startswith("gold/pairs[photos] was made before a change: recipe gold.deg")


def test_patches_are_those_that_gold_was_made_from(home: Home) -> None:
    old, new = photos(2), 255 - photos(2)
    silver = home.write_patches(old)
    home.make_gold(silver)
    home.write_patches(new, "b" * 24)
    found = home.explain()
    np.testing.assert_array_equal(found.hr, old[1])
    assert found.same and found.changed == ("silver/patches[photos] has new content",)
    shutil.rmtree(str(silver.path))
    with pytest.raises(StageError, match="are gone: run `srd build 'gold/pairs"):
        home.explain()


def test_other_bytes_are_told_with_their_distance(home: Home) -> None:
    hr = photos(2)
    lr = hr.copy()
    lr[1, 3, 5, 2] ^= 2
    halved = AppliedStep("resize", "nearest", {"height": float(SIDE), "width": float(SIDE)}, 1)
    home.write_gold(home.write_patches(hr), lr, (DOUBLED, halved))
    assert home.explain(0).same is True
    found = home.explain(1)
    assert found.same is False and explained_json(found)["same_bytes"] is False
    assert explained_lines(found)[-1] == (
        "Made again from the stored numbers: NOT the same bytes: "
        f"1 of {SIDE * SIDE * 3} values differ, by up to 2 levels."
    )


@pytest.mark.parametrize("steps", [(), (AppliedStep("paired", "", {}),)], ids=["none", "paired"])
def test_lr_that_came_with_the_dataset_is_said_to(home: Home, steps: SampleSteps) -> None:
    hr = photos(2)
    lr = hr[:, 1::4, 1::4]
    home.write_gold(home.write_patches(hr), lr, steps)
    found = home.explain()
    assert (found.same, found.pictures, found.scale) == (None, (), 4)
    told = explained_lines(found)
    assert any("LR is the dataset's own" in line for line in told)
    assert not any("Made again" in line for line in told)
    json.dumps(explained_json(found), allow_nan=False)
    sheet = contact_sheet(found)
    assert shows(sheet, enlarged(lr[1], 288)) and shows(sheet, enlarged(hr[1], 288))


@pytest.mark.parametrize(
    "step", [AppliedStep("melt", "wax", {"heat": 3.0}), AppliedStep("noise", "gaussian", {})]
)
def test_steps_of_another_version_are_listed_all_the_same(home: Home, step: AppliedStep) -> None:
    hr = photos(2)
    home.write_gold(home.write_patches(hr), hr[:, ::4, ::4], (step,))
    found = home.explain()
    assert found.same is None and found.steps == (step,)
    assert "cannot be done again" in explained_lines(found)[4]


def test_json_has_every_number_and_no_infinity(home: Home) -> None:
    hr = np.full((2, SIDE, SIDE, 3), 90, np.uint8)
    home.degradation, home.recipe = "bicubic", {"gold": {"variants": 1}}
    store = PairReader(home.make_gold(home.write_patches(hr)))
    found = home.explain()
    told = json.loads(json.dumps(explained_json(found), allow_nan=False))
    assert told["psnr_y"] is None and "infinite (identical)" in explained_lines(found)[-2]
    assert told["lr"]["sha256"] == hashlib.sha256(store.lr(1, 0).tobytes()).hexdigest()
    (step,) = told["steps"]
    assert step["numbers"] == {"height": 12, "width": 12}
    assert (step["height"], step["width"], step["op"]) == (12, 12, "resize")


def test_a_patch_too_small_for_the_measure_has_no_number(home: Home) -> None:
    hr = photos(2, 16)
    home.recipe = {"scale": 8, "silver": {"patch_size": 16}}
    home.make_gold(home.write_patches(hr))
    found = home.explain()
    assert found.psnr_y is None and "not measurable" in "".join(explained_lines(found))
    assert contact_sheet(found).dtype == np.uint8


def test_the_sheet_shows_every_picture_at_the_size_of_hr(home: Home) -> None:
    home.make_gold(home.write_patches(photos(2)))
    found = home.explain()
    side = 6 * SIDE  # the first multiple that a label fits above
    step = found.steps[0]
    pictures = (found.hr, found.hr // 2, found.lr)
    found = dataclasses.replace(found, steps=(step,) * 9, pictures=pictures * 3)
    sheet = contact_sheet(found)
    assert all(shows(sheet, enlarged(picture, side)) for picture in pictures)
    assert sheet.shape[1] <= 1250 and sheet.shape[0] > 3 * side  # eleven panels in rows
    large = found.lr.repeat(8, 0).repeat(8, 1)  # larger than a panel: averaged, not cut
    grown = dataclasses.replace(found, hr=found.hr, pictures=(large,), steps=(DOUBLED,))
    assert contact_sheet(grown).shape[0] < sheet.shape[0]


def test_a_ringing_kernel_has_red_lobes_and_a_blur_has_none(home: Home) -> None:
    home.make_gold(home.write_patches(np.zeros((2, SIDE, SIDE, 3), np.uint8)))
    found = home.explain()
    sinc = AppliedStep("sinc", "sinc", {"size": 21.0, "cutoff": 0.5})
    blur = AppliedStep("blur", "isotropic", {"size": 21.0, "sigma": 2.0})
    pictures = (found.hr, found.lr)

    def red(step: AppliedStep) -> int:
        sheet = contact_sheet(
            dataclasses.replace(found, steps=(step, DOUBLED), pictures=pictures)
        ).astype(int)
        return int((sheet[..., 0] > sheet[..., 1] + 20).sum())

    assert red(sinc) > 100 and red(blur) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"dataset": "nobody"}, "no dataset 'nobody'; there are: photos"),
        ({"index": 2}, r"gold/pairs\[photos\] has 2 patches, 0 to 1: none is 2"),
        ({"index": -1}, "none is -1"),
        ({"variant": 2}, "has 2 versions of each patch, the first is 0: there is no --variant 2"),
    ],
)
def test_what_is_not_there_is_named(home: Home, words: dict[str, Any], said: str) -> None:
    home.make_gold(home.write_patches(photos(2)))
    with pytest.raises(StageError, match=said):
        home.explain(**words)


def test_a_store_that_was_never_made_is_named_with_the_command(home: Home) -> None:
    with pytest.raises(StageError, match=r"has not been made: run `srd build 'gold/pairs\[photos"):
        home.explain()


@pytest.mark.parametrize("name", [PARAMS, "pairs.zarr/lr/c/0/0/0/0/0"])
def test_a_damaged_store_is_told(home: Home, name: str) -> None:
    output = home.make_gold(home.write_patches(photos(2)))
    file = Path(str(output.path)) / name
    data = bytearray(file.read_bytes())
    for part in range(1, 16):  # whichever of the four samples is asked for
        data[part * len(data) // 16] ^= 4
    file.write_bytes(data)
    with pytest.raises((StageError, DamagedStoreError), match=r"is damaged.*delete its output"):
        home.explain(0)


def test_a_table_without_steps_asks_for_a_build(home: Home) -> None:
    silver = home.write_patches(photos(2))
    folder = OutputFolder(home.graph().folder(GOLD) / ("c" * 24))
    writer = PairWriter(folder, 2, 1, 12, {})
    writer.write(0, np.zeros((2, 1, 12, 12, 3), np.uint8))
    writer.write_params(params_table("bicubic", [((),), ((),)]).drop_columns(["steps"]))
    home.commit(folder, silver, {})
    with pytest.raises(StageError, match="kept no steps: run `srd build"):
        home.explain()


def test_the_command_ends_with_code_1_where_the_bytes_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    hr = photos(2)
    with open_instance() as instance:
        home = Home(tmp_path / "data", instance)
        recipe = home.graph().recipe
        lr = hr.copy()
        lr[1] ^= 1
        step = dataclasses.replace(DOUBLED, numbers={"height": SIDE, "width": SIDE})
        home.write_gold(home.write_patches(hr), lr, (step,))
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True)))
    words = ["explain", "photos", "-r", str(file)]
    same, other = (CliRunner().invoke(main, [*words, n]) for n in "01")
    assert (same.exit_code, other.exit_code) == (0, 1)
    assert "the same bytes." in same.output and "NOT the same bytes" in other.output
