"""Silver on small generated images: split, grid, what is left out, going on after a kill."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from upath import UPath

from sr_assets.ahead import ahead
from sr_assets.assets import silver
from sr_assets.assets.overlap import Overlap
from sr_assets.assets.patch_grid import detail, grid, held_out
from sr_assets.assets.silver import stages
from sr_assets.lineage.stage import Ref, StageContext, StageError
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output
from sr_assets.stores import patches as patch_store
from sr_assets.stores.manifest import MANIFEST, ManifestRow, to_parquet
from sr_assets.stores.patches import TRAIN, VALIDATION, PatchReader


class Killed(BaseException):
    """Stands for the end of the process."""


def recipe(seed: int = 42, **fields: Any) -> Recipe:
    source = {"source": {"kind": "folder", "path": "photos"}}
    small = {"min_side": 40, "patch_size": 16, "stride": 16, **fields}
    return Recipe(name="test", seed=seed, datasets={"photos": source}, silver=small)


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def bronze(folder: Path, pictures: dict[str, np.ndarray]) -> Output:
    """A bronze output as the stage writes it."""
    output = OutputFolder(UPath(folder / "bronze" / "address"))
    rows = []
    for name, picture in pictures.items():
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "PNG")
        digest = output.write_bytes(f"files/{name}", data.getvalue())
        height, width = picture.shape[:2]
        rows.append(ManifestRow(name, digest, width, height, "RGB", len(data.getvalue()), "ok", ""))
    rows.append(ManifestRow("broken.png", "", None, None, None, 3, "quarantined", "no image"))
    output.write_bytes(MANIFEST, to_parquet(rows))
    return output.commit({"metadata": {}})


def overlap(folder: Path, *entries: Overlap) -> Output:
    """An output of the overlap guard."""
    output = OutputFolder(UPath(folder / "overlap" / "address"))
    output.write_json("overlap.json", [asdict(entry) for entry in entries])
    return output.commit({"metadata": {}})


def run(
    folder: Path,
    source: Output,
    wanted: Recipe,
    kill_after: int | None = None,
    shared: tuple[Overlap, ...] = (),
) -> tuple[Output, dict[str, Any]]:
    """Runs the stage; `kill_after` ends it once that many patches were written."""
    done = 0

    @contextmanager
    def bar(label: str, total: int, unit: str) -> Iterator[Any]:
        def advance(n: int) -> None:
            nonlocal done
            done += n if unit == "patches" else 0
            if kill_after is not None and done >= kill_after:
                raise Killed

        yield advance

    (stage,) = stages(wanted)
    output = OutputFolder(UPath(folder / "silver" / "address"))
    context = StageContext(
        recipe=wanted,
        ref=Ref(stage.key, "photos"),
        output=output,
        inputs={
            Ref("bronze/images", "photos"): source,
            Ref("bronze/overlap", "photos"): overlap(folder, *shared),
        },
        log=lambda line: None,
        observe=lambda values: None,
        bar=bar,
    )
    metadata = stage.run(context)
    return output.commit({"metadata": metadata}), metadata


def test_every_patch_is_where_the_store_says(tmp_path: Path) -> None:
    pictures = {f"{name}.png": noise(i, 40 + 3 * i, 50) for i, name in enumerate("dacb")}
    wanted = recipe(stride=12)
    output, metadata = run(tmp_path, bronze(tmp_path, pictures), wanted)
    store = PatchReader(output)
    assert store.images == sorted(pictures)
    order = list(zip(store.image, store.y, store.x, strict=True))
    assert order == sorted(order)
    for n in range(len(store)):
        picture = pictures[store.images[store.image[n]]]
        y, x = store.y[n], store.x[n]
        np.testing.assert_array_equal(store.hr(n), picture[y : y + 16, x : x + 16])
    assert metadata["patches"] == len(store) == metadata["train"] + metadata["validation"]
    assert metadata["train"] == int((store.split == TRAIN).sum())
    assert (metadata["images"], metadata["left_out"]) == (4, 0)


def test_validation_is_whole_images_and_tiles_them(tmp_path: Path) -> None:
    pictures = {f"{i}.png": noise(i, 48, 56) for i in range(5)}
    output, _ = run(
        tmp_path, bronze(tmp_path, pictures), recipe(stride=4, min_detail=1, validation_share=0.4)
    )
    store = PatchReader(output)
    splits = {int(i): set(store.split[store.image == i]) for i in np.unique(store.image)}
    assert sorted(map(tuple, splits.values())) == [(TRAIN,)] * 3 + [(VALIDATION,)] * 2
    for image, split in splits.items():
        picture = pictures[store.images[image]]
        if split == {VALIDATION}:
            whole = np.zeros((48, 48, 3), np.uint8)
            members = np.flatnonzero(store.image == image)
            assert len(members) == 9
            for n in members:
                whole[store.y[n] : store.y[n] + 16, store.x[n] : store.x[n] + 16] = store.hr(n)
            np.testing.assert_array_equal(whole, picture[:48, :48])


@given(
    st.lists(st.binary(max_size=8), min_size=2, max_size=60, unique=True),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
    st.randoms(),
)
def test_the_split_depends_on_content_only(
    contents: list[bytes], share: float, seed: int, random: Any
) -> None:
    digests = [hashlib.sha256(c).hexdigest() for c in contents]
    chosen = held_out(digests, share, seed)
    assert 1 <= len(chosen) < len(digests) and chosen <= set(digests)
    random.shuffle(digests)
    assert held_out(digests, share, seed) == chosen
    # One image more takes at most one place; nobody else changes sides because of a name.
    grown = held_out([*digests, hashlib.sha256(b"one more image").hexdigest()], share, seed)
    assert len(chosen - grown) <= 1 and len(grown - chosen) <= 1


def test_another_seed_gives_another_split() -> None:
    digests = [hashlib.sha256(bytes([i])).hexdigest() for i in range(40)]
    assert len({held_out(digests, 0.1, seed) for seed in range(5)}) > 1
    assert len(held_out(digests, 0.1, 0)) == 4


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.integers(1, 25))
def test_the_grid_stays_inside_and_leaves_no_room(
    height: int, width: int, size: int, stride: int
) -> None:
    corners = grid(height, width, size, stride)
    assert corners.shape[1:] == (2,)
    if min(height, width) < size:
        assert not len(corners)
        return
    assert (corners[0] == 0).all()
    last = corners.max(0)
    assert (last + size <= (height, width)).all()
    assert (last + size + stride > (height, width)).all()
    assert len(corners) == (last[0] // stride + 1) * (last[1] // stride + 1)


def test_small_images_are_left_out_by_name(tmp_path: Path) -> None:
    pictures = {"a.png": noise(0, 40, 40), "b.png": noise(1, 60, 39), "c.png": noise(2, 64, 64)}
    output, metadata = run(tmp_path, bronze(tmp_path, pictures), recipe())
    assert PatchReader(output).images == ["a.png", "c.png"]
    assert metadata["left_out"] == 1
    assert metadata["left_out_images"] == ["b.png (39x60)"]


def test_what_a_benchmark_shows_is_left_out_by_name(tmp_path: Path) -> None:
    source = bronze(tmp_path, {f"{i}.png": noise(i, 48, 48) for i in range(4)})
    shared = (
        Overlap("1.png", "Set5", "bird.png", "equal", 0.0),
        Overlap("1.png", "Set14", "bird.png", "near", 0.01),
        Overlap("3.png", "Set5", "head.png", "near", 0.1),
    )
    output, metadata = run(tmp_path, source, recipe(), shared=shared)
    assert PatchReader(output).images == ["0.png", "2.png"]
    assert metadata["overlapping"] == 2
    assert metadata["overlapping_images"] == [
        "1.png equals bird.png of Set5",
        "3.png nearly equals head.png of Set5",
    ]
    shared = tuple(Overlap(f"{i}.png", "Set5", "bird.png", "equal", 0.0) for i in range(3))
    with pytest.raises(StageError, match=r"only 3\.png .*show them: 3, such as 0\.png eq"):
        run(tmp_path / "few", source, recipe(), shared=shared)


def test_detail_of_known_patches() -> None:
    assert detail(np.full((5, 5, 3), 77, np.uint8)) == 0
    ramp = np.arange(0, 50, 5, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(3, 2)
    assert detail(ramp) == 0
    board = ((np.indices((6, 7)).sum(0) % 2) * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert detail(board) == 4 * 255
    green = board * np.array([0, 1, 0], np.uint8)
    assert detail(green) == pytest.approx(4 * 255 * 0.587)


def test_flat_training_patches_are_left_out_but_validation_keeps_its_own(tmp_path: Path) -> None:
    pictures = {}
    for i in range(4):
        pictures[f"{i}.png"] = picture = noise(i, 48, 48)
        picture[:, 16:32] = 10 * i
    output, metadata = run(tmp_path, bronze(tmp_path, pictures), recipe(min_detail=5))
    store = PatchReader(output)
    train = store.split == TRAIN
    assert set(store.x[train]) == {0, 32} and set(store.x[~train]) == {0, 16, 32}
    assert metadata["without_detail"] == 9 and metadata["train"] == 18
    assert all(detail(store.hr(int(n))) >= 5 for n in np.flatnonzero(train))


@pytest.mark.parametrize("min_detail", [0.0, 1.0])
def test_a_killed_run_goes_on_where_it_was_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, min_detail: float
) -> None:
    monkeypatch.setattr(patch_store, "_SHARD_SAMPLES", 7)
    source = bronze(tmp_path, {f"{i}.png": noise(i, 50, 70) for i in range(5)})
    wanted = recipe(min_detail=min_detail)
    whole, _ = run(tmp_path / "undisturbed", source, wanted)
    with pytest.raises(Killed):
        run(tmp_path / "killed", source, wanted, kill_after=28)
    read: list[str] = []
    original = silver.read_image

    def counted(output: Output, row: ManifestRow, limit: float) -> Any:
        read.append(row.path)
        return original(output, row, limit)

    monkeypatch.setattr(silver, "read_image", counted)
    resumed, _ = run(tmp_path / "killed", source, wanted)
    assert resumed.data_version == whole.data_version
    # 12 patches an image, 28 written: the first two images are not decoded again.
    assert sorted(read) == ["2.png", "3.png", "4.png"]


def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    source = bronze(tmp_path, {f"{i}.png": noise(i, 44, 60) for i in range(6)})
    versions = set()
    for workers in (1, 5):
        data = {**recipe(min_detail=0.5).model_dump(), "compute": {"workers": workers}}
        output, _ = run(tmp_path / str(workers), source, Recipe.model_validate(data))
        versions.add(output.data_version)
    assert len(versions) == 1


def test_decoding_ahead_keeps_the_order_and_its_bound() -> None:
    started: list[int] = []

    def work(n: int) -> int:
        started.append(n)
        return n * n

    for taken, result in enumerate(ahead(3, work, range(30))):
        assert result == taken * taken
        assert len(started) <= taken + 1 + 3


@pytest.mark.parametrize(
    ("shapes", "fields", "message"),
    [
        ([(30, 90), (20, 20)], {}, r"min_side 40.*none of 2 images of photos.*0.png \(90x30\)"),
        ([(30, 90), (64, 64)], {}, r"only 1.png \(64x64\).*0.png \(90x30\).*two images"),
        ([(45, 45), (46, 47)], {"patch_size": 64}, r"silver.patch_size 64: none of 2.*\(47x46\)"),
        ([(48, 48), (64, 64)], {"min_detail": 1000}, r"min_detail 1000: none of (9|16) training"),
    ],
)
def test_what_gives_no_patch_names_the_field_and_the_sizes(
    tmp_path: Path, shapes: list[tuple[int, int]], fields: dict[str, Any], message: str
) -> None:
    source = bronze(tmp_path, {f"{i}.png": noise(i, *shape) for i, shape in enumerate(shapes)})
    with pytest.raises(StageError, match=message) as caught:
        run(tmp_path, source, recipe(**fields))
    assert "\n" not in str(caught.value)


def test_an_image_that_changed_under_bronze_stops_the_stage(tmp_path: Path) -> None:
    source = bronze(tmp_path, {f"{i}.png": noise(i, 48, 48) for i in range(3)})
    file = Path(str(source.path / "files" / "1.png"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(StageError, match=r"1\.png changed since bronze was made"):
        run(tmp_path, source, recipe())


def test_the_stage_reads_exactly_its_part_of_the_recipe() -> None:
    (stage,) = stages(recipe(seed=7))
    assert stage.settings == {
        "silver.min_side": 40,
        "silver.patch_size": 16,
        "silver.stride": 16,
        "silver.min_detail": 0.0,
        "silver.validation_share": 0.1,
        "seed": 7,
    }
    assert list(stage.inputs("photos")) == [
        Ref("bronze/images", "photos"),
        Ref("bronze/overlap", "photos"),
    ]
    assert stage.partitions == "dataset"
