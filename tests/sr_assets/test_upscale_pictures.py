"""What becomes of depth, grey, alpha, colour spaces and metadata when a picture is enlarged."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import torch
from image_files import saved, wide_png, wide_tiff
from PIL import Image, ImageCms
from spandrel.architectures.Compact import Compact
from torch import nn

from sr_assets.upscaling.files import UpscaleReport, upscale_files
from sr_models.export.weights import serialise_weights
from sr_models.inference.self_ensemble import self_ensemble
from sr_models.inference.streaming import samples_to_unit, unit_to_samples

CPU = torch.device("cpu")
#: A photo's words about itself.
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='r'/></x:xmpmeta>"


def near_identity() -> nn.Module:
    """Compact with small weights: nearest neighbour and a little of a network."""
    torch.manual_seed(0)
    network = Compact(num_feat=8, num_conv=2, upscale=2).eval()
    with torch.no_grad():
        network.body[-1].weight *= 0.1
        network.body[-1].bias *= 0.1
    return network


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "net.safetensors"
    path.write_bytes(serialise_weights(near_identity().state_dict(), {}))
    return path


def run(model: Path, source: Path, output: Path, **more: Any) -> UpscaleReport:
    return upscale_files(
        str(model), source, output, root=output.parent / "root", device="cpu", **more
    )


def samples(height: int, width: int, bands: int, dtype: type = np.uint8) -> np.ndarray:
    """A smooth picture, so that lossy formats keep it."""
    random = np.random.default_rng(bands)
    coarse = random.random((4, 5, bands)).astype(np.float32)
    planes = torch.from_numpy(coarse.transpose(2, 0, 1))[None]
    fine = nn.functional.interpolate(planes, (height, width), mode="bicubic")[0].clamp(0, 1)
    return unit_to_samples(fine, np.dtype(dtype))


def network(lr: np.ndarray, depth: int) -> np.ndarray:
    """What the network makes of colour samples, whole."""
    planes = samples_to_unit(lr, CPU)
    with torch.no_grad():
        sr = near_identity()(planes.expand(-1, 3, -1, -1))[0]
    sr = sr.mean(0, keepdim=True) if lr.shape[2] == 1 else sr
    return unit_to_samples(sr, np.dtype(np.uint8 if depth == 8 else np.uint16))


def read(path: Path) -> np.ndarray:
    image = pyvips.Image.new_from_file(str(path))
    return image.numpy().reshape(image.height, image.width, image.bands)


def off(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape and a.dtype == b.dtype
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_stay_sixteen(model: Path, tmp_path: Path, bands: int, suffix: str) -> None:
    lr = samples(30, 41, bands, np.uint16)
    content = wide_png(lr) if suffix == "png" else wide_tiff(lr, "<", 2 if bands == 3 else 1)
    (tmp_path / f"a.{suffix}").write_bytes(content)
    report = run(model, tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}")
    assert not report.failed
    got = read(tmp_path / f"b.{suffix}")
    assert off(got, network(lr, 16)) <= 1 and len(np.unique(got)) > 256


def test_depth_is_that_of_the_input_or_what_is_asked(model: Path, tmp_path: Path) -> None:
    lr = samples(30, 41, 3, np.uint8)
    Image.fromarray(lr).save(tmp_path / "a.png")
    (tmp_path / "w.png").write_bytes(wide_png(samples(30, 41, 3, np.uint16)))
    run(model, tmp_path / "a.png", tmp_path / "deep.png", depth=16)
    assert off(read(tmp_path / "deep.png"), network(lr, 16)) <= 1
    run(model, tmp_path / "w.png", tmp_path / "flat.png", depth=8)
    assert read(tmp_path / "flat.png").dtype == np.uint8
    run(model, tmp_path / "w.png", tmp_path / "w.jpg")
    assert read(tmp_path / "w.jpg").dtype == np.uint8
    run(model, tmp_path / "w.png", tmp_path / "w.avif")
    assert pyvips.Image.new_from_file(str(tmp_path / "w.avif")).get("bits-per-sample") == 12
    report = run(model, tmp_path / "a.png", tmp_path / "b.webp", depth=16)
    assert "holds 8 bits a sample" in report.failed[0][1]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
def test_grey_stays_grey(model: Path, tmp_path: Path, suffix: str) -> None:
    lr = samples(30, 41, 1)
    Image.fromarray(lr[..., 0]).save(tmp_path / "a.png")
    assert not run(model, tmp_path / "a.png", tmp_path / f"b.{suffix}").failed
    got = read(tmp_path / f"b.{suffix}")
    expected = network(lr, 8)
    if suffix in ("webp", "avif"):  # which have no grey
        assert np.ptp(got.astype(int), axis=2).max() <= 2
        assert np.abs(got.mean(2) - expected[..., 0]).max() < 6
    else:
        assert got.shape[2] == 1 and off(got, expected) <= (6 if suffix == "jpg" else 0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
def test_every_format_holds_the_picture(model: Path, tmp_path: Path, suffix: str) -> None:
    lr = samples(30, 41, 3)
    Image.fromarray(lr).save(tmp_path / "a.png")
    assert not run(model, tmp_path / "a.png", tmp_path / f"b.{suffix}").failed
    got, expected = read(tmp_path / f"b.{suffix}"), network(lr, 8)
    # WebP halves the resolution of colour.
    assert np.abs(got.astype(float) - expected).mean() < (4 if suffix == "webp" else 2)
    assert suffix not in ("png", "tif") or np.array_equal(got, expected)


def test_quality_is_for_lossy_formats(model: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    for suffix in ("jpg", "webp", "avif"):
        sizes = []
        for quality in (20, 90):
            run(model, tmp_path / "a.png", tmp_path / f"{quality}.{suffix}", quality=quality)
            sizes.append((tmp_path / f"{quality}.{suffix}").stat().st_size)
        assert sizes[0] < sizes[1] / 2
    run(model, tmp_path / "a.png", tmp_path / "all.webp", quality=100)
    assert np.array_equal(read(tmp_path / "all.webp"), network(noise, 8))


def cut_out(hidden: int) -> np.ndarray:
    """A disc on nothing, soft at its edge; `hidden` is the colour that nobody sees."""
    lr = np.concatenate([samples(40, 48, 3), np.zeros((40, 48, 1), np.uint8)], 2)
    y, x = np.mgrid[:40, :48]
    alpha = np.clip((14 - np.hypot(y - 20, x - 24)) / 3 + 0.5, 0, 1)
    lr[..., 3] = np.round(alpha * 255)
    lr[lr[..., 3] == 0, :3] = hidden
    return lr


def test_colours_that_nobody_sees_do_not_show(model: Path, tmp_path: Path) -> None:
    found = []
    for hidden in (0, 255):
        Image.fromarray(cut_out(hidden)).save(tmp_path / "a.png")
        run(model, tmp_path / "a.png", tmp_path / "b.png", overwrite=True)
        found.append(read(tmp_path / "b.png"))
    assert np.array_equal(found[0][..., 3], found[1][..., 3])
    shown = found[0][..., 3] > 0
    assert np.array_equal(found[0][shown], found[1][shown])
    # Nor does black or white come in at the edge: the colours are those of the disc.
    lr = cut_out(0)
    inside = lr[lr[..., 3] > 128, :3]
    edge = found[0][(found[0][..., 3] > 8) & (found[0][..., 3] < 250), :3]
    assert edge.min() >= int(inside.min()) - 40 and edge.max() <= int(inside.max()) + 40


def test_alpha_stays_clean_inside_and_outside(model: Path, tmp_path: Path) -> None:
    Image.fromarray(cut_out(0)).save(tmp_path / "a.png")
    run(model, tmp_path / "a.png", tmp_path / "b.png")
    alpha = read(tmp_path / "b.png")[..., 3]
    y, x = np.mgrid[:80, :96]
    radius = np.hypot(y - 40.5, x - 48.5)
    assert (alpha[radius < 20] == 255).all() and (alpha[radius > 38] == 0).all()
    assert len(np.unique(alpha)) > 10


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_in_tiles_is_alpha_of_the_whole(model: Path, tmp_path: Path, dtype: type) -> None:
    lr = cut_out(0).astype(dtype) * (1 if dtype == np.uint8 else 257)
    content = saved(Image.fromarray(lr), "PNG") if dtype == np.uint8 else wide_png(lr)
    (tmp_path / "a.png").write_bytes(content)
    run(model, tmp_path / "a.png", tmp_path / "whole.png")
    run(model, tmp_path / "a.png", tmp_path / "tiled.png", tile=24)
    whole = read(tmp_path / "whole.png")
    assert np.array_equal(read(tmp_path / "tiled.png"), whole)
    assert whole.dtype == dtype and whole.shape == (80, 96, 4)


def test_opaque_alpha_stays_opaque_and_grey_alpha_grey(model: Path, tmp_path: Path) -> None:
    lr = cut_out(0)
    lr[..., 3] = 255
    Image.fromarray(lr).save(tmp_path / "a.png")
    run(model, tmp_path / "a.png", tmp_path / "b.png")
    got = read(tmp_path / "b.png")
    assert (got[..., 3] == 255).all() and np.array_equal(got[..., :3], network(lr[..., :3], 8))
    Image.fromarray(cut_out(0)).convert("LA").save(tmp_path / "la.png")
    run(model, tmp_path / "la.png", tmp_path / "grey.png")
    assert read(tmp_path / "grey.png").shape == (80, 96, 2)


def test_a_format_without_alpha_gets_white_and_a_line(model: Path, tmp_path: Path) -> None:
    Image.fromarray(cut_out(0)).save(tmp_path / "a.png")
    told: list[str] = []
    run(model, tmp_path / "a.png", tmp_path / "b.jpg", tell=told.append)
    got = read(tmp_path / "b.jpg")
    assert got.shape == (80, 96, 3) and got[:6, :6].min() > 250
    assert any("jpeg holds no transparency: laid on white" in line for line in told)


def described(image: Image.Image, **more: Any) -> bytes:
    exif = Image.Exif()
    exif[274], exif[271], exif[33432] = 6, "Maker", "somebody"
    exif.get_ifd(0x8769)[0x9003] = "2026:11:22 10:00:00"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return saved(image, "JPEG", exif=exif, icc_profile=profile, xmp=XMP, dpi=(300, 300), **more)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
def test_metadata_is_kept_and_orientation_applied(model: Path, tmp_path: Path, suffix: str) -> None:
    lr = samples(30, 41, 3)
    content = described(Image.fromarray(lr), quality=100, subsampling=0)
    (tmp_path / "a.jpg").write_bytes(content)
    run(model, tmp_path / "a.jpg", tmp_path / f"b.{suffix}")
    with Image.open(tmp_path / f"b.{suffix}") as made, Image.open(io.BytesIO(content)) as source:
        assert made.size == (60, 82)  # upright: 30 px wide
        assert made.info["icc_profile"] == source.info["icc_profile"]
        xmp = made.info.get("xmp") or made.info.get("XML:com.adobe.xmp")
        assert XMP.strip() in (xmp.encode() if isinstance(xmp, str) else xmp)
        exif = made.getexif()
        assert exif.get(274, 1) == 1
        if suffix != "tif":
            assert (exif[271], exif[33432]) == ("Maker", "somebody")
            assert exif.get_ifd(0x8769)[0x9003] == "2026:11:22 10:00:00"
        if suffix in ("png", "jpg", "tif"):
            assert made.info["dpi"][0] == pytest.approx(300, abs=0.1)
        upright = np.asarray(made.convert("RGB")).astype(float)
    turned = np.rot90(network(lr, 8), -1)
    assert np.abs(upright - turned).mean() < 4


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_thumbnail_is_left_out(model: Path, tmp_path: Path, order: str) -> None:
    small = saved(Image.new("RGB", (16, 12), "red"), "JPEG")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    first = struct.pack(f"{order}HHHIHHI", 1, 274, 3, 1, 6, 0, 26)
    at = 26 + 2 + 2 * 12 + 4
    second = struct.pack(f"{order}HHHIIHHIII", 2, 513, 4, 1, at, 514, 4, 1, len(small), 0)
    exif = b"Exif\0\0" + head + first + second + small
    Image.fromarray(samples(30, 41, 3)).save(tmp_path / "a.jpg", exif=exif)
    assert "jpeg-thumbnail-data" in pyvips.Image.new_from_file(str(tmp_path / "a.jpg")).get_fields()
    run(model, tmp_path / "a.jpg", tmp_path / "b.jpg")
    made = pyvips.Image.new_from_file(str(tmp_path / "b.jpg"))
    assert "jpeg-thumbnail-data" not in made.get_fields() and made.get("orientation") == 1
    assert (made.width, made.height) == (60, 82)


def test_an_rgb_profile_changes_no_sample(model: Path, tmp_path: Path) -> None:
    lr = samples(30, 41, 3)
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    wide = wide[:16] + b"RGB " + wide[20:]  # whatever it says, it is for three channels
    Image.fromarray(lr).save(tmp_path / "a.png", icc_profile=wide)
    run(model, tmp_path / "a.png", tmp_path / "b.tif")
    assert np.array_equal(read(tmp_path / "b.tif"), network(lr, 8))


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
def test_other_colour_models_become_srgb_with_a_line(
    model: Path, tmp_path: Path, mode: str
) -> None:
    lr = np.full((20, 24, 3), (200, 40, 60), np.uint8)
    image = Image.fromarray(lr)
    if mode == "LAB":
        transform = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        )
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        image = converted
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.tif")
    told: list[str] = []
    assert not run(model, tmp_path / "a.tif", tmp_path / "b.png", tell=told.append).failed
    assert any("made sRGB" in line for line in told)
    red, green, blue = read(tmp_path / "b.png").reshape(-1, 3).mean(0)
    assert red > 150 and green < 100 and blue < 110


@pytest.mark.parametrize("suffix", ["bmp", "ppm", "jp2", "gif", "webp", "avif"])
def test_what_can_be_read_beside(model: Path, tmp_path: Path, suffix: str) -> None:
    lr = samples(30, 41, 3)
    options = {"webp": {"lossless": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}}
    image = Image.fromarray(lr)
    (image.quantize(256) if suffix == "gif" else image).save(
        tmp_path / f"a.{suffix}", **options.get(suffix, {})
    )
    assert not run(model, tmp_path / f"a.{suffix}", tmp_path / "b.png").failed
    assert np.abs(read(tmp_path / "b.png").astype(float) - network(lr, 8)).mean() < 8


def test_brackets_in_a_name_are_part_of_it(model: Path, tmp_path: Path) -> None:
    name = "scan[page=3,n=-1].png"
    Image.fromarray(samples(30, 41, 3)).save(tmp_path / name)
    report = run(model, tmp_path / name, tmp_path / "out[Q=1].tif")
    assert report.written == [tmp_path / "out[Q=1].tif"]
    assert read_source(tmp_path / "out[Q=1].tif").shape == (60, 82, 3)


def read_source(path: Path) -> np.ndarray:
    source = pyvips.Source.new_from_file(str(path))
    return pyvips.Image.new_from_source(source, "").numpy()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.png", b"", "empty file"),
        ("text.png", b"no picture at all", "not a PNG"),
        ("float.tif", saved(Image.new("F", (20, 20)), "TIFF"), "floating-point"),
        ("integer.tif", saved(Image.new("I", (20, 20)), "TIFF"), "signed or 32-bit"),
        ("large.png", saved(Image.new("1", (4000, 3000)), "PNG"), "12.0 megapixels, more than 10"),
        (
            "moving.gif",
            saved(
                Image.new("L", (20, 20)), "GIF", save_all=True,
                append_images=[Image.new("L", (20, 20), 200)],
            ),
            "animated",
        ),
        ("cut.jpg", described(Image.effect_noise((200, 200), 90))[:-9000], "broken: "),
        ("cut.png", saved(Image.effect_noise((200, 200), 90), "PNG")[:-9000], "broken: "),
        ("alpha.png", saved(Image.effect_noise((200, 200), 90).convert("LA"), "PNG")[:-9000],
         "broken: "),
        ("cut.tif", saved(Image.effect_noise((200, 200), 90), "TIFF")[:-9000], "broken: "),
    ],
)  # fmt: skip
def test_bad_files_are_lines_and_leave_nothing(
    model: Path, tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    Image.fromarray(samples(9, 9, 3)).save(tmp_path / "in" / "good.png")
    report = run(model, tmp_path / "in", tmp_path / "out", max_megapixels=10)
    assert [path.name for path, _ in report.failed] == [name]
    assert told in report.failed[0][1] and "\n" not in report.failed[0][1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


def test_self_ensemble_is_the_mean_of_the_turns(model: Path, tmp_path: Path) -> None:
    lr = samples(30, 41, 3)
    Image.fromarray(lr).save(tmp_path / "a.png")
    run(model, tmp_path / "a.png", tmp_path / "b.png", self_ensemble=True)
    planes = samples_to_unit(lr, CPU)
    with torch.no_grad():
        sr = self_ensemble(lambda turn: near_identity()(turn(planes)))[0]
    assert off(read(tmp_path / "b.png"), unit_to_samples(sr, np.dtype(np.uint8))) <= 1


def test_a_grey_picture_with_a_profile_for_rgb_becomes_rgb(model: Path, tmp_path: Path) -> None:
    lr = samples(30, 41, 1)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(lr[..., 0]).save(tmp_path / "a.jpg", quality=100, icc_profile=profile)
    run(model, tmp_path / "a.jpg", tmp_path / "b.png")
    assert read(tmp_path / "b.png").shape == (60, 82, 3)
    with Image.open(tmp_path / "b.png") as made:
        assert made.info["icc_profile"] == profile
