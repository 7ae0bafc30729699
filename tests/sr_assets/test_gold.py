"""Gold on a small generated patch store: the LR, the table, and going on after a kill."""

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
from sr_assets.lineage.stage import Ref, StageContext, StageError
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output, OutputFolder
from sr_assets.stores import pairs as pair_store
from sr_assets.stores.pairs import PairReader
from sr_assets.stores.patches import PatchPositions, PatchWriter
from sr_models.degradations.bicubic import downscale_uint8


class Killed(BaseException):
    """Stands for the end of the process."""


def recipe(scale: int = 4, variants: int = 1, workers: int = 2) -> Recipe:
    return Recipe(
        name="test",
        scale=scale,
        datasets={"photos": {"source": {"kind": "folder", "path": "photos"}}},
        silver={"patch_size": 48},
        gold={"variants": variants},
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
    rows = [{"index": n, "variant": 0, "degradation": "bicubic"} for n in range(count)]
    assert store.params().to_pylist() == rows
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


def test_equal_copies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"gold\.variants is 3, .* set gold\.variants to 1"):
        run(tmp_path, patches(tmp_path, noise(1)), recipe(variants=3))


def test_a_damaged_patch_stops_the_stage_with_the_mend(tmp_path: Path) -> None:
    source = patches(tmp_path, noise(3))
    shard = Path(str(source.path)) / "patches.zarr/hr/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(
        StageError, match=r"hr\[\d\] is damaged .*delete its output and build again"
    ):
        run(tmp_path, source, recipe())


def test_the_stage_reads_exactly_its_part_of_the_recipe() -> None:
    (stage,) = stages(recipe(scale=2))
    assert stage.settings == {"gold.degradation": "bicubic", "gold.variants": 1, "scale": 2}
    assert list(stage.inputs("photos")) == [Ref("silver/patches", "photos")]
    assert "sr_models.degradations.bicubic" in stage.modules
