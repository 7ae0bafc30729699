"""The overlap guard: near copies are told from other pictures, and reruns stop where they may."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy.fft import dctn

from sr_assets.assets.overlap import Overlap, find_overlap, load_overlap
from sr_assets.definitions import build_defs
from sr_assets.graph import Graph, build_graph
from sr_assets.likeness import distance_between, luma_of, near_copies, perceptual_hash
from sr_assets.lineage.build import build, to_do
from sr_assets.lineage.plan import survey
from sr_assets.lineage.records import current_output
from sr_assets.lineage.stage import Ref
from sr_assets.pictures import decode_rgb
from sr_assets.recipe.models import Recipe
from sr_assets.report.markdown import plain, visible
from sr_assets.stores.manifest import ManifestRow


def scene(seed: int, width: int = 240, height: int = 180) -> Image.Image:
    """Soft shapes of every size, as in photos; no two seeds look alike."""
    random = np.random.default_rng(seed)
    sizes = ((3, 4, 60), (7, 9, 40), (15, 20, 25), (45, 60, 12))
    total = np.full((height, width, 3), 128.0)
    for rows, columns, strength in sizes:
        noise = random.normal(0, 1, (rows, columns, 3)).astype(np.float32)
        layers = [
            np.asarray(Image.fromarray(noise[..., c]).resize((width, height), Image.BICUBIC))
            for c in range(3)
        ]
        total += strength * np.stack(layers, axis=-1)
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def luma(image: Image.Image) -> np.ndarray:
    return luma_of(np.asarray(image.convert("RGB")))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    w, h = image.size
    return image.crop((round(left * w), round(top * h), round(right * w), round(bottom * h)))


def scaled(image: Image.Image, x: float, y: float) -> Image.Image:
    return image.resize((round(image.width * x), round(image.height * y)), Image.LANCZOS)


COPIES = {
    "as it is": lambda i: i,
    "jpeg": lambda i: jpeg(i, 30),
    "quarter": lambda i: scaled(i, 0.25, 0.25),
    "double": lambda i: scaled(i, 2, 2),
    "other aspect": lambda i: scaled(i, 1, 1.02),
    "gamma": lambda i: i.point([round(255 * (v / 255) ** 0.7) for v in range(256)] * 3),
    "darker": lambda i: i.point([v * 7 // 10 for v in range(256)] * 3),
    "grey": lambda i: i.convert("L"),
    "blurred": lambda i: i.filter(ImageFilter.GaussianBlur(1.5)),
    "5 % off the middle": lambda i: cut(i, 0.025, 0.025, 0.975, 0.975),
    "5 % off the right": lambda i: cut(i, 0, 0, 0.95, 1),
    "flipped": lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned": lambda i: i.transpose(Image.Transpose.ROTATE_90),
    "upside down": lambda i: i.transpose(Image.Transpose.ROTATE_180),
    "all of it": lambda i: jpeg(
        scaled(cut(i, 0.01, 0.02, 0.98, 1), 0.5, 0.5).transpose(Image.Transpose.TRANSVERSE), 40
    ),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_near_copy_is_found_whoever_is_the_copy(change: Any) -> None:
    originals = [luma(scene(seed)) for seed in range(8)]
    copies = [luma(change(scene(seed))) for seed in range(8)]
    for first, second in ((originals, copies), (copies, originals)):
        assert [(m.first, m.second) for m in near_copies(first, second)] == [
            (n, n) for n in range(8)
        ]


def test_other_pictures_are_not() -> None:
    scenes = [luma(scene(seed)) for seed in range(60)]
    assert near_copies(scenes[:30], scenes[30:]) == []
    pixels = np.asarray(scene(0, 480, 360))
    parts = [luma_of(np.ascontiguousarray(pixels[y : y + 180, x : x + 240]))
             for y in (0, 180) for x in (0, 240)]  # fmt: skip
    assert near_copies([luma_of(pixels)], parts) == []


@given(st.integers(0, 255), st.integers(0, 255), st.integers(1, 70), st.integers(1, 70))
def test_pictures_without_detail_are_like_nothing(a: int, b: int, height: int, width: int) -> None:
    flat = [luma_of(np.full((height, width, 3), level, np.uint8)) for level in (a, b)]
    assert distance_between(*flat) == 1
    assert near_copies(flat, [*flat, luma(scene(1))]) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 3), (10, 5000), (31, 33), (500, 333)])
def test_every_size_has_a_luma(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = luma_of(pixels)
    assert found.shape == (32, 32) and found.dtype == np.uint8
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    assert abs(float(found.mean()) - grey.mean()) < 4


@given(st.integers(0, 1000))
def test_the_hash_is_the_median_of_the_lowest_frequencies(seed: int) -> None:
    picture = luma(scene(seed, 64, 48))
    low = dctn(picture.astype(np.float64))[:8, :8]
    bits = (low > np.median(low)).ravel()
    wanted = int("".join(str(int(bit)) for bit in bits), 2)
    assert (perceptual_hash(picture) ^ wanted).bit_count() <= 2


def row(path: str, picture: np.ndarray, sha256: str = "") -> ManifestRow:
    digest = sha256 or path
    look = luma_of(picture)
    return ManifestRow(
        path, digest, 1, 1, "RGB", 1, "ok", "", f"{perceptual_hash(look):016x}", look.tobytes()
    )


def test_equal_and_near_are_told_apart() -> None:
    pixels = np.asarray(scene(5))
    rows = [row("c", pixels, "same"), row("b", pixels), row("a", np.asarray(scene(6)))]
    benchmarks = {
        "Set5": [row("one", pixels, "same"), row("two", np.asarray(scene(7)))],
        "Set14": [row("far", np.asarray(scene(8)))],
    }
    assert find_overlap(rows, benchmarks) == [
        Overlap("b", "Set5", "one", "near", 0.0),
        Overlap("c", "Set5", "one", "equal", 0.0),
    ]
    assert find_overlap(rows, {}) == [] == find_overlap([], benchmarks)


def test_near_copies_can_be_let_through_and_equal_files_cannot() -> None:
    picture = np.asarray(scene(1))
    rows = [row("near.png", picture, "a"), row("same.png", picture, "b")]
    bench = {"bench": [row("b.png", picture, "b")]}
    assert {o.kind for o in find_overlap(rows, bench)} == {"near", "equal"}
    assert [o.path for o in find_overlap(rows, bench, near_copy=0)] == ["same.png"]


# ---------------------------------------------------------------- as part of the graph


class Project:
    """Folders of pictures and the graph over them, built by Dagster."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder, self.instance = folder, instance
        self.benchmarks = ["bench"]
        for name, seeds in {"photos": range(4), "other": range(10, 13), "bench": [30]}.items():
            for seed in seeds:
                self.add(name, f"{seed}.png", scene(seed))

    def add(self, name: str, file: str, image: Image.Image) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        image.save(self.folder / name / file)

    def graph(self) -> Graph:
        def sources(names: list[str]) -> dict[str, Any]:
            folders = {name: str(self.folder / name) for name in names}
            return {n: {"source": {"kind": "folder", "path": p}} for n, p in folders.items()}

        return build_graph(
            Recipe.model_validate(
                {
                    "name": "guarded",
                    "root": str(self.folder / "data"),
                    "datasets": sources(["photos", "other"]),
                    "benchmarks": sources(self.benchmarks),
                    "silver": {"min_side": 64, "patch_size": 32, "stride": 32},
                    "compute": {"workers": 1, "device": "cpu"},
                }
            )
        )

    def build(self) -> set[str]:
        """Makes silver of all datasets; says what ran."""
        graph = self.graph()
        job = build_defs(graph).resolve_implicit_global_asset_job_def()
        wanted = graph.select(["silver/patches"])
        result = build(graph, job, self.instance, wanted, lambda line: None)
        assert not result.failed
        assert not to_do(survey(graph, self.instance), wanted)
        return {str(ref) for ref in result.made}

    def overlap(self, name: str) -> list[Overlap]:
        output = current_output(self.instance, self.graph(), Ref("bronze/overlap", name))
        assert output is not None
        return load_overlap(output)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:
        yield Project(tmp_path, instance)


def test_a_benchmark_that_comes_later_is_guarded_and_no_more_runs_than_must(
    project: Project,
) -> None:
    assert "bronze/overlap[photos]" in project.build()
    assert project.overlap("photos") == []

    project.add("more", "strange.png", scene(40))
    project.add("more", "leak.png", scaled(scene(2), 0.5, 0.5))
    project.benchmarks = ["bench", "more"]
    assert project.build() == {
        *("bronze/images[more]", "bronze/benchmarks"),
        *("bronze/overlap[photos]", "bronze/overlap[other]"),
        "silver/patches[photos]",  # and not that of the other dataset, which shares nothing
    }
    assert project.overlap("other") == []
    (found,) = project.overlap("photos")
    assert (found.path, found.benchmark, found.benchmark_path) == ("2.png", "more", "leak.png")


def test_dagster_reads_its_own_partition_and_the_benchmarks(project: Project) -> None:
    definitions = build_defs(project.graph())
    dg.Definitions.validate_loadable(definitions)
    graph = definitions.resolve_asset_graph()
    overlap = graph.get(dg.AssetKey(["bronze", "overlap"]))
    images, benchmarks = (dg.AssetKey(["bronze", name]) for name in ("images", "benchmarks"))
    assert overlap.parent_keys == {images, benchmarks}
    assert overlap.partition_mappings[images] == dg.IdentityPartitionMapping()
    every = dg.SpecificPartitionsPartitionMapping(["bench"])
    assert graph.get(benchmarks).partition_mappings[images] == every


# ---------------------------------------------------------------- names of strangers


@given(st.text())
def test_no_text_leaves_its_cell(text: str) -> None:
    cell = plain(text)
    assert not set(cell) & set("|<>`[]*_\n\r\\")
    assert len(visible(text).splitlines()) <= 1
    assert "\u202e" not in cell and "\u2028" not in cell


# ---------------------------------------------------------------- real pictures


@pytest.mark.shared
def test_real_benchmarks_share_no_picture_but_one(shared_data: Path) -> None:
    def lumas(folder: str, pattern: str = "*.png") -> tuple[list[str], list[np.ndarray]]:
        files = sorted((shared_data / folder).glob(pattern))
        return [f.name for f in files], [luma_of(decode_rgb(f.read_bytes(), 50)) for f in files]

    names5, set5 = lumas("benchmarks/Set5")
    names14, set14 = lumas("benchmarks/Set14")
    (match,) = near_copies(set5, set14)
    assert (names5[match.first], names14[match.second]) == (
        "img_004_SRF_4_HR.png",  # both sets show the same head
        "img_006_SRF_4_HR.png",
    )
    _, photos = lumas("photos", "*_00?.jpg")
    assert len(photos) >= 10
    assert near_copies(photos, [*set5, *set14]) == []
