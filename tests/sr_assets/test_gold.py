"""Gold on a small generated patch store: the LR, the table, and going on after a kill."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from sr_assets.assets.gold import stages
from sr_assets.lineage.code_version import module_digests
from sr_assets.lineage.stage import Ref, StageContext, StageError
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output
from sr_assets.stores import pairs as pair_store
from sr_assets.stores.pairs import AppliedStep, PairReader
from sr_assets.stores.patches import PatchPositions, PatchWriter
from sr_models.degradations.bicubic import downscale_uint8
from sr_models.degradations.drawing import draw, sample_key
from sr_models.degradations.presets import PRESETS
from sr_models.degradations.second_order import degrade


class Killed(BaseException):
    """Stands for the end of the process."""


def recipe(
    scale: int = 4,
    variants: int = 1,
    workers: int = 2,
    degradation: Any = "bicubic",
    seed: int = 42,
) -> Recipe:
    return Recipe(
        name="test",
        seed=seed,
        scale=scale,
        datasets={"photos": {"source": {"kind": "folder", "path": "photos"}}},
        silver={"patch_size": 48},
        gold={"variants": variants, "degradation": degradation},
        compute={"workers": workers},
    )


def patches(folder: Path, hr: np.ndarray) -> Output:
    """A silver output that holds `hr`, uint8 [N, S, S, 3]."""
    output = OutputFolder(UPath(folder / "silver" / "address"))
    numbers = np.arange(len(hr))
    zeros = np.zeros(len(hr))
    positions = PatchPositions(zeros, zeros, numbers * hr.shape[1], zeros)
    writer = PatchWriter(output, positions, hr.shape[1], ["one.png"], {})
    for shard, samples in enumerate(writer.shards):
        writer.write(shard, hr[samples.start : samples.stop])
    return output.commit({"metadata": {}})


def noise(count: int, size: int = 48) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def run(
    folder: Path, source: Output, wanted: Recipe, kill_after: int | None = None
) -> tuple[Output, dict[str, Any]]:
    """Runs the stage; `kill_after` ends it once that many patches were degraded."""
    done = 0

    @contextmanager
    def bar(label: str, total: int, unit: str) -> Iterator[Any]:
        def advance(n: int) -> None:
            nonlocal done
            done += n
            if done == kill_after:
                raise Killed

        yield advance

    (stage,) = stages(wanted)
    output = OutputFolder(UPath(folder / "gold" / "address"))
    context = StageContext(
        recipe=wanted,
        ref=Ref(stage.key, "photos"),
        output=output,
        inputs=dict.fromkeys(stage.inputs("photos"), source),
        log=lambda line: None,
        observe=lambda values: None,
        bar=bar,
    )
    metadata = stage.run(context)
    return output.commit({"metadata": metadata}), metadata


@settings(max_examples=8, deadline=None)
@given(scale=st.sampled_from([2, 3, 4, 8]), count=st.integers(1, 9), workers=st.integers(1, 4))
def test_every_pair_is_the_bicubic_reduction_of_its_patch(
    tmp_path_factory: pytest.TempPathFactory, scale: int, count: int, workers: int
) -> None:
    folder, hr = tmp_path_factory.mktemp("gold"), noise(count)
    output, metadata = run(folder, patches(folder, hr), recipe(scale, workers=workers))
    store = PairReader(output)
    assert (len(store), store.variants, store.size) == (count, 1, 48 // scale)
    for n in range(count):
        np.testing.assert_array_equal(store.lr(n, 0), downscale_uint8(hr[n], scale))
    side = 48.0 / scale
    resize = AppliedStep("resize", "bicubic, antialiased", {"height": side, "width": side})
    assert list(store.steps()) == [(n, 0, (resize,)) for n in range(count)]
    assert set(store.params()["degradation"].to_pylist()) == {"bicubic"}
    assert metadata["pairs"] == count


def test_a_killed_run_goes_on_where_it_was_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_store, "_SHARD_SAMPLES", 4)
    source = patches(tmp_path, noise(11))
    whole, _ = run(tmp_path / "undisturbed", source, recipe())
    with pytest.raises(Killed):
        run(tmp_path / "killed", source, recipe(), kill_after=9)
    # Two shards of 4 are there; 3 patches remain, and the kill counter must not be reached again.
    resumed, _ = run(tmp_path / "killed", source, recipe(), kill_after=4)
    assert resumed.data_version == whole.data_version


def test_equal_copies_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gold\.variants is 3, .* set it to 1"):
        recipe(variants=3)


def test_a_damaged_patch_stops_the_stage_with_the_mend(tmp_path: Path) -> None:
    source = patches(tmp_path, noise(3))
    shard = Path(str(source.path)) / "patches.zarr/hr/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(
        StageError, match=r"hr: shard 0, sample \d is damaged .*delete its output and build again"
    ):
        run(tmp_path, source, recipe())


@pytest.mark.parametrize("degradation", ["realworld", "light"])
def test_versions_are_the_process_applied_to_the_patch(tmp_path: Path, degradation: str) -> None:
    hr, wanted = noise(5), recipe(variants=3, degradation=degradation)
    store = PairReader(run(tmp_path, patches(tmp_path, hr), wanted)[0])
    assert (len(store), store.variants, store.size) == (5, 3, 12)
    for index, variant, steps in store.steps():
        digest = hashlib.sha256(hr[index].tobytes()).digest()
        key = sample_key(42, digest, variant)
        drawn = draw(PRESETS[degradation], 48, 48, 4, key)
        assert [(s.op, s.kind, s.position, dict(s.numbers)) for s in steps] == [
            (s.op, s.kind, s.position, dict(s.numbers)) for s in drawn
        ]
        np.testing.assert_array_equal(
            store.lr(index, variant), degrade(hr[index], PRESETS[degradation], 4, key)
        )
    versions = {store.lr(0, k).tobytes() for k in range(3)}
    assert len(versions) == 3, "each version is another one"


def test_the_same_bytes_with_any_number_of_workers_and_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_store, "_SHARD_SAMPLES", 4)
    source = patches(tmp_path, noise(11))
    made = {
        workers: run(tmp_path / str(workers), source, recipe(2, 2, workers, "realworld"))[
            0
        ].data_version
        for workers in (1, 2, 4)
    }
    assert len(set(made.values())) == 1
    with pytest.raises(Killed):
        run(tmp_path / "killed", source, recipe(2, 2, 2, "realworld"), kill_after=9)
    resumed, _ = run(tmp_path / "killed", source, recipe(2, 2, 2, "realworld"))
    assert resumed.data_version == made[1], "the table is that of all samples too"


def test_a_patch_keeps_its_versions_when_others_come_before_it(tmp_path: Path) -> None:
    hr, wanted = noise(3), recipe(variants=2, degradation="realworld")
    some = PairReader(run(tmp_path / "a", patches(tmp_path / "a", hr[1:]), wanted)[0])
    every = PairReader(run(tmp_path / "b", patches(tmp_path / "b", hr), wanted)[0])
    np.testing.assert_array_equal(some.lr(0, 1), every.lr(1, 1))
    other = recipe(variants=2, degradation="realworld", seed=7)
    changed = PairReader(run(tmp_path / "c", patches(tmp_path / "c", hr), other)[0])
    assert not np.array_equal(changed.lr(1, 1), every.lr(1, 1))


def test_steps_of_ones_own(tmp_path: Path) -> None:
    hr = noise(2)
    own = {
        "steps": [
            {"kind": "resize", "methods": ["area"]},
            {"kind": "shuffle", "steps": [{"kind": "webp", "quality": [50, 60]}, {"kind": "sinc"}]},
        ]
    }
    store = PairReader(run(tmp_path, patches(tmp_path, hr), recipe(2, degradation=own))[0])
    for _, _, steps in store.steps():
        assert steps[0] == AppliedStep("resize", "area", {"height": 24.0, "width": 24.0}, 0)
        assert sorted((s.op, s.position) for s in steps[1:]) == [("sinc", 2), ("webp", 1)]
        assert all(50 <= s.numbers["quality"] <= 60 for s in steps if s.op == "webp")
    assert store.params()["degradation"].to_pylist() == ["composed", "composed"]


def test_the_stage_reads_exactly_its_part_of_the_recipe() -> None:
    (stage,) = stages(recipe(scale=2))
    assert stage.settings == {"gold.degradation": "bicubic", "gold.variants": 1, "scale": 2}
    assert list(stage.inputs("photos")) == [Ref("silver/patches", "photos")]


def test_the_code_of_a_process_is_no_part_of_bicubic_gold() -> None:
    def used(degradation: str) -> set[str]:
        (stage,) = stages(recipe(degradation=degradation))
        return {name.removeprefix("sr_models.degradations.") for name in
                module_digests(stage.modules_of("photos"))}  # fmt: skip

    process = {"kernels", "filtering", "noise", "codecs", "resizing", "second_order", "drawing"}
    assert not process & used("bicubic")
    assert "bicubic" in used("bicubic")
    assert process <= used("realworld")
    assert "bicubic" not in used("realworld")
    (stage,) = stages(recipe(degradation="realworld"))
    assert stage.settings["seed"] == 42
