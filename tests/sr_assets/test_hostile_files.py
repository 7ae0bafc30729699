"""A folder of hostile files, through bronze, overlap and silver: each ends as the table says."""

import os
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from image_files import (
    ADOBE_RGB_PROFILE,
    SWAPPED_PROFILE,
    chunk,
    cmyk_profile,
    png,
    saved,
    wide_png,
    wide_tiff,
)
from PIL import Image

from sr_assets.assets.bronze import read_image
from sr_assets.assets.overlap import load_overlap
from sr_assets.definitions import build_defs
from sr_assets.graph import build_graph
from sr_assets.lineage.build import build
from sr_assets.lineage.records import current_output
from sr_assets.lineage.stage import Ref
from sr_assets.recipe.models import Recipe
from sr_assets.storage import Output
from sr_assets.stores.manifest import ManifestRow, from_parquet
from sr_assets.stores.patches import PatchReader

LIMIT = 4.0
TAKEN, IGNORED, LINK, UNSEEN = "taken", "ignored", "link not followed", "not looked at"

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Hostile:
    """One file: its name, how it is made, and its end: one of the four words or the reason."""

    name: str | bytes
    make: bytes | Make
    end: str
    shows: np.ndarray | None = None
    """The pixels that must come out, uint8 [H, W, 3]."""
    within: int = 0
    """Levels by which a pixel may differ from `shows`."""


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth blobs under noise, uint8 [H, W, 3]; no two seeds look alike."""
    random = np.random.default_rng(seed)
    blobs = Image.fromarray(random.integers(20, 235, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    return np.clip(smooth + random.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


def image(seed: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(picture(seed)).convert(mode)


def jpeg(seed: int, **options: Any) -> bytes:
    return saved(image(seed), "JPEG", **{"quality": 90, **options})


def turned(orientation: int) -> bytes:
    """A picture as a camera that was held so stores it: EXIF says how to turn it back."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = image(100 + orientation)
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[274] = orientation
    return saved(stored, "PNG", exif=exif)


def transparent(seed: int, alpha: int, mode: str = "RGBA") -> Image.Image:
    with_alpha = image(seed).convert(mode)
    mask = Image.new("L", with_alpha.size, 255)
    mask.putpixel((9, 9), alpha)
    with_alpha.putalpha(mask)
    return with_alpha


def palette(seed: int, **options: Any) -> bytes:
    return saved(image(seed).quantize(32), "PNG", **options)


def animated(seed: int, format_: str) -> bytes:
    return saved(image(seed), format_, save_all=True, append_images=[image(seed + 1)])


def altered(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def bomb(chunk_name: bytes, start: bytes) -> bytes:
    """A PNG of one pixel beside a chunk that unpacks to 64 MB."""
    return png(1, 1, 8, 0, b"\0\0", chunk(chunk_name, start + zlib.compress(bytes(64 << 20), 9)))


def overfull_png() -> bytes:
    """A picture whose pixel data go on for 64 MB after its last row."""
    rows = b"".join(b"\0" + row.tobytes() for row in picture(60))
    return png(64, 48, 8, 2, rows + bytes(64 << 20))


def broken_profile() -> bytes:
    """A PNG whose profile chunk has a right checksum and cannot be unpacked."""
    rows = b"".join(b"\0" + row.tobytes() for row in picture(61))
    return png(64, 48, 8, 2, rows, chunk(b"iCCP", b"icc\0\0no zlib data"))


def link_to(target: str) -> Make:
    return lambda path: path.symlink_to(target)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    where = Path.cwd()
    try:
        os.chdir(path.parent)  # the path of a socket is at most 108 bytes long
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(where)


def folder_with(name: str, data: bytes) -> Make:
    def make(path: Path) -> None:
        path.mkdir()
        (path / name).write_bytes(data)

    return make


def locked(path: Path) -> None:
    path.write_bytes(jpeg(62))
    path.chmod(0)


def flat(*colour: int) -> np.ndarray:
    return np.full((48, 64, 3), colour, np.uint8)


def to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


# Off the exact 8-bit levels, by less than half of one.
GREY16 = picture(20)[..., 0].astype(np.uint16) * 257 + 40 * (picture(20)[..., 0] < 255)
RGB16 = picture(21).astype(np.uint16) * 257 - 40 * (picture(21) > 0)
STRIP = np.random.default_rng(22).integers(0, 256, (10, 100_000), dtype=np.uint8)
LEAK = picture(90, 96, 128)
NOT_READ = "not a PNG, JPEG, WebP"
SEVERAL = "animated, or several pages"
PROFILE = "ICC profile is broken"

HOSTILE = [
    # damage
    Hostile("truncated.jpg", jpeg(1)[:1500], "broken: image file is truncated"),
    Hostile("truncated.png", saved(image(2), "PNG")[:3000], "broken: "),
    Hostile("truncated_header.jpg", jpeg(3)[:12], "broken: "),
    Hostile("truncated_header.png", saved(image(4), "PNG")[:20], "broken: "),
    Hostile("truncated.webp", saved(image(5), "WEBP")[:400], "broken: "),
    Hostile("truncated.tif", saved(image(6), "TIFF")[:5000], "broken: "),
    Hostile("empty.png", b"", "empty file"),
    Hostile("wrong_checksum.png", altered(saved(image(7), "PNG"), 200, b"\0\1\2"), "broken: "),
    Hostile("garbage_after_end.jpg", jpeg(8) + b"<?php ?>" * 999, TAKEN, picture(8), 60),
    Hostile("no_end_marker.jpg", jpeg(9)[:-2], "broken: image file is truncated"),
    Hostile("altered.jpg", altered(jpeg(17), 1200, bytes(8)), TAKEN),
    Hostile("restart.jpg", jpeg(18, restart_marker_blocks=2).replace(b"\xff\xd1", b"\xff\xd6"),
            TAKEN),
    # another thing than its name says
    Hostile("jpeg.png", jpeg(10), TAKEN, picture(10), 60),
    Hostile("page.jpg", b"<!doctype html><script>alert(1)</script>", NOT_READ),
    Hostile("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", NOT_READ),
    Hostile("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", IGNORED),
    Hostile("archive.jpg", b"PK\3\4" + bytes(500), NOT_READ),
    Hostile("postscript.jpg", saved(image(11), "EPS"), NOT_READ),
    Hostile("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90), NOT_READ),
    Hostile("new.jxl", b"\xff\x0a" + bytes(90), NOT_READ),
    Hostile("no_ending", jpeg(12), IGNORED),
    # bombs
    Hostile("bomb_header.png", png(60_000, 60_000, 8, 2, b""), "larger than 4 megapixels"),
    Hostile("bomb_header.jpg", altered(jpeg(13), jpeg(13).index(b"\xff\xc0") + 5, b"\xff" * 4),
            "larger than 4 megapixels"),
    Hostile("bomb_large.png", saved(Image.new("1", (2100, 2000)), "PNG"), "2100x2000 is 4.2 mega"),
    Hostile("bomb_text.png", bomb(b"zTXt", b"Comment\0\0"), "broken: "),
    Hostile("bomb_profile.png", bomb(b"iCCP", b"icc\0\0"), "broken: "),
    Hostile("bomb_pixels.png", overfull_png(), TAKEN, picture(60)),
    # sizes
    Hostile("strip.png", saved(Image.fromarray(STRIP), "PNG"), TAKEN, to_rgb(STRIP)),
    Hostile("pixel.png", saved(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), TAKEN,
            np.array([[[1, 2, 3]]], np.uint8)),
    # colours
    Hostile("cmyk.jpg", saved(image(14, "CMYK"), "JPEG"), "CMYK without an ICC profile"),
    Hostile("cmyk_profile.tif", saved(Image.new("CMYK", (64, 48), (0, 0, 0, 255)), "TIFF",
            icc_profile=cmyk_profile()), TAKEN, flat(0, 0, 0), 9),
    Hostile("adobe.png", saved(Image.new("RGB", (64, 48), (120, 160, 90)), "PNG",
            icc_profile=ADOBE_RGB_PROFILE), TAKEN, flat(99, 161, 85), 1),
    Hostile("cut_profile.png", saved(image(15), "PNG", icc_profile=SWAPPED_PROFILE[:200]), PROFILE),
    Hostile("packed_profile.png", broken_profile(), PROFILE),
    Hostile("lab.tif", saved(Image.new("LAB", (64, 48)), "TIFF"), "pixels of kind LAB"),
    # samples
    Hostile("grey16.png", wide_png(GREY16[..., None]), TAKEN, to_rgb(picture(20)[..., 0])),
    Hostile("rgb16.png", wide_png(RGB16), TAKEN, picture(21)),
    Hostile("rgb16.tif", wide_tiff(RGB16 // 2 * 2, ">"), TAKEN, picture(21)),
    Hostile("float.tif", saved(Image.new("F", (64, 48), 0.5), "TIFF"), "floating-point"),
    Hostile("int32.tif", saved(Image.new("I", (64, 48), 7), "TIFF"), "signed or 32-bit"),
    Hostile("one_bit.png", saved(image(23, "1"), "PNG"), TAKEN,
            np.asarray(image(23, "1").convert("RGB"))),
    Hostile("palette.png", palette(24), TAKEN, np.asarray(image(24).quantize(32).convert("RGB"))),
    Hostile("palette_clear.png", palette(25, transparency=0), "transparent pixels"),
    Hostile("opaque.png", saved(transparent(26, 255), "PNG"), TAKEN, picture(26)),
    Hostile("clear.png", saved(transparent(27, 254), "PNG"), "transparent pixels"),
    Hostile("clear.webp", saved(transparent(28, 9), "WEBP", lossless=True), "transparent pixels"),
    # several pictures in one
    Hostile("moving.gif", animated(30, "GIF"), SEVERAL),
    Hostile("moving.webp", animated(32, "WEBP"), SEVERAL),
    Hostile("moving.png", animated(34, "PNG"), SEVERAL),
    Hostile("pages.tif", animated(36, "TIFF"), SEVERAL),
    # plain, of other kinds
    Hostile("lossless.webp", saved(image(40), "WEBP", lossless=True), TAKEN, picture(40)),
    Hostile("plain.bmp", saved(image(41), "BMP"), TAKEN, picture(41)),
    Hostile("progressive.jpg", jpeg(42, progressive=True), TAKEN, picture(42), 60),
    *(Hostile(f"exif{n}.png", turned(n), TAKEN, picture(100 + n)) for n in range(1, 9)),
    # names
    Hostile("new\nline.png", saved(image(50), "PNG"), TAKEN, picture(50)),
    Hostile("'quotes\" `$(id)`.png", saved(image(51), "PNG"), TAKEN, picture(51)),
    Hostile("größe 漢字.png", saved(image(52), "PNG"), TAKEN, picture(52)),
    Hostile("🦜.png", saved(image(53), "PNG"), TAKEN, picture(53)),
    Hostile("-rf.png", saved(image(54), "PNG"), TAKEN, picture(54)),
    Hostile("back\\slash|<b>.png", saved(image(55), "PNG"), TAKEN, picture(55)),
    Hostile("right\u202egnp.png", saved(image(56), "PNG"), TAKEN, picture(56)),
    Hostile("%2e%2e%2fescape.png", saved(image(57), "PNG"), TAKEN, picture(57)),
    Hostile(b"\xff\xfe.png", saved(image(58), "PNG"), "file name is not valid UTF-8"),
    Hostile("n" * 246 + ".png", saved(image(59), "PNG"), "file name is longer than 240 bytes"),
    Hostile(".hidden.png", saved(image(63), "PNG"), UNSEEN),
    # no plain files
    Hostile("away.png", link_to("../outside.png"), LINK),
    Hostile("device.png", link_to("/dev/zero"), LINK),
    Hostile("dangling.png", link_to("nothing.png"), IGNORED),
    Hostile("loop.png", link_to("loop.png"), LINK),
    Hostile("up", link_to(".."), LINK),
    Hostile("inside.png", link_to("plain.bmp"), TAKEN, picture(41)),
    Hostile("pipe.png", pipe, IGNORED),
    Hostile("socket.png", listening, IGNORED),
    Hostile("folder.png", folder_with("in.png", saved(image(64), "PNG")), UNSEEN),
    Hostile("locked.jpg", locked, "cannot be read: permission denied"),
    # copies
    Hostile("twin_a.png", saved(image(65), "PNG"), TAKEN, picture(65)),
    Hostile("twin_b.png", saved(image(65), "PNG"), "duplicate of twin_a.png"),
    Hostile("leak_equal.png", saved(Image.fromarray(LEAK), "PNG"), TAKEN, LEAK),
    Hostile("leak_mirrored.jpg", saved(Image.fromarray(LEAK[:, ::-1]), "JPEG", quality=30), TAKEN),
]  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What a build made of the folder."""

    bronze: Output
    overlap: Output
    silver: Output

    @property
    def rows(self) -> dict[str, ManifestRow]:
        rows = from_parquet(self.bronze.read_bytes("manifest.parquet"))
        return {row.path: row for row in rows}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the table, beside a benchmark and a file that nobody may reach."""
    base = tmp_path_factory.mktemp("hostile")
    (base / "bench").mkdir()
    (base / "bench" / "leak.png").write_bytes(saved(Image.fromarray(LEAK), "PNG"))
    (base / "outside.png").write_bytes(saved(image(99), "PNG"))
    folder = base / "photos"
    folder.mkdir()
    for file in HOSTILE:
        raw = file.name if isinstance(file.name, bytes) else file.name.encode()
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + raw))
        if isinstance(file.make, bytes):
            path.write_bytes(file.make)
        else:
            file.make(path)
    return base


@pytest.fixture(scope="module")
def by_workers(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Made]:
    """Two builds of it: one thread, and more than there are processors."""
    return {n: build_all(hostile, tmp_path_factory.mktemp(f"workers{n}"), n) for n in (1, 4)}


@pytest.fixture
def made(by_workers: dict[int, Made]) -> Made:
    """Either build: `test_workers_change_nothing` says that they are the same."""
    return by_workers[4]


def build_all(folder: Path, root: Path, workers: int) -> Made:
    """Bronze, overlap and silver through Dagster."""

    def source(name: str) -> dict[str, Any]:
        return {"source": {"kind": "folder", "path": str(folder / name)}}

    recipe = Recipe.model_validate(
        {
            "name": "hostile",
            "root": str(root),
            "datasets": {"photos": source("photos")},
            "benchmarks": {"bench": source("bench")},
            "bronze": {"max_megapixels": LIMIT},
            "silver": {"min_side": 32, "patch_size": 16, "stride": 16},
            "compute": {"workers": workers, "device": "cpu"},
        }
    )
    graph = build_graph(recipe)
    job = build_defs(graph).resolve_implicit_global_asset_job_def()
    (root / "home").mkdir(parents=True)
    with dg.DagsterInstance.local_temp(str(root / "home")) as instance:
        wanted = graph.select(["silver/patches"])
        result = build(graph, job, instance, wanted, lambda line: None)
        assert not result.failed and set(result.made) == wanted
        keys = ("bronze/images", "bronze/overlap", "silver/patches")
        outputs = [current_output(instance, graph, Ref(key, "photos")) for key in keys]
    bronze, overlap, silver = (output for output in outputs if output is not None)
    return Made(bronze, overlap, silver)


def shown(file: Hostile) -> str:
    return file.name if isinstance(file.name, str) else file.name.decode(errors="backslashreplace")


def test_the_table_is_long_enough_and_names_each_file_once() -> None:
    assert len(HOSTILE) >= 30
    assert len({file.name for file in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("file", HOSTILE, ids=lambda file: ascii(shown(file))[1:40])
def test_each_file_ends_as_decided(made: Made, file: Hostile) -> None:
    name = shown(file)
    if file.make is locked and os.geteuid() == 0:
        pytest.skip("root may read every file")
    row = made.rows.get(name)
    if file.end in (IGNORED, LINK, UNSEEN):
        assert row is None
        return
    assert row is not None
    taken = made.bronze.path / "files" / name
    if name == "plain.bmp":
        # The link to it comes first: of two names of one file one is enough.
        assert row.reason == "duplicate of inside.png"
    elif file.end == TAKEN:
        assert row.ok and row.reason == "", row.reason
        pixels = read_image(made.bronze, row, LIMIT)
        assert pixels.shape == (row.height, row.width, 3)
        if file.shows is not None:
            assert pixels.shape == file.shows.shape
            off = np.abs(pixels.astype(np.int16) - file.shows)
            assert off.max() <= file.within
    else:
        assert not row.ok and row.reason.startswith(file.end), row.reason
        assert "\n" not in row.reason
    assert taken.exists() == row.ok


def test_what_is_counted_and_not_listed(made: Made) -> None:
    ends = [file.end for file in HOSTILE]
    told = made.bronze.metadata
    assert told["ignored_files"] == ends.count(IGNORED)
    assert told["links_not_followed"] == ends.count(LINK)
    inside = {"folder.png/in.png"}
    listed = {shown(f) for f in HOSTILE if f.end not in (IGNORED, LINK, UNSEEN)}
    assert set(made.rows) == listed | inside
    assert made.rows["folder.png/in.png"].ok
    assert told["images"] + told["quarantined"] == len(made.rows)


def test_what_a_benchmark_shows_is_named_and_not_cut(made: Made) -> None:
    found = load_overlap(made.overlap)
    assert [(one.path, one.kind) for one in found] == [
        ("leak_equal.png", "equal"),
        ("leak_mirrored.jpg", "near"),
    ]
    assert {(one.benchmark, one.benchmark_path) for one in found} == {("bench", "leak.png")}
    assert made.silver.metadata["overlapping"] == 2
    assert (
        "leak_mirrored.jpg nearly equals leak.png of bench"
        in (made.silver.metadata["overlapping_images"])
    )


def test_silver_cuts_all_others(made: Made) -> None:
    small = {"strip.png", "pixel.png"}
    leaks = {one.path for one in load_overlap(made.overlap)}
    wanted = {row.path for row in made.rows.values() if row.ok} - small - leaks
    assert set(PatchReader(made.silver).images) == wanted
    assert made.silver.metadata["left_out"] == len(small)


def test_no_name_escapes_from_what_is_shown(made: Made) -> None:
    told = str([made.bronze.metadata, made.overlap.metadata, made.silver.metadata])
    page = made.bronze.read_bytes("page.html").decode()
    for text in (told, page):
        assert "<b>.png" not in text and "\u202e" not in text
    assert "| page&#46;jpg | not a PNG" in made.bronze.metadata["quarantine"]["md"]
    assert len(str(made.bronze.metadata)) < 200_000
    assert "page.html" not in {
        name for name, entry in made.bronze.marker["files"].items() if entry["content"]
    }


def test_workers_change_nothing(by_workers: dict[int, Made]) -> None:
    one, four = by_workers[1], by_workers[4]
    for output in ("bronze", "overlap", "silver"):
        assert getattr(one, output).data_version == getattr(four, output).data_version
    assert one.rows == four.rows
    assert one.bronze.read_bytes("page.html") == four.bronze.read_bytes("page.html")


def test_the_header_of_a_bomb_is_what_it_says() -> None:
    (bomb_file,) = (file for file in HOSTILE if file.name == "bomb_header.jpg")
    assert isinstance(bomb_file.make, bytes)
    at = bomb_file.make.index(b"\xff\xc0") + 5
    assert struct.unpack(">HH", bomb_file.make[at : at + 4]) == (65535, 65535)
