"""Opens a picture of any size for being read in tiles, with its depth, alpha and metadata.

Files are decoded by libvips with its untrusted loaders shut, the rest by Pillow within the limits
of `sr_assets/pictures.py`, whose checks of the header all files pass first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms

from sr_assets.pictures import ImageFacts, decode_rgb, inspect
from sr_assets.srgb import BadImage

if TYPE_CHECKING:
    import pyvips

    from sr_models.inference.streaming import Samples

_DEPTHS = {"uchar": 8, "ushort": 16}
_SRGB = {8: "srgb", 16: "rgb16"}
_PROFILE = "icc-profile-data"


@dataclass(frozen=True)
class Picture:
    """An open picture: upright, grey or RGB, alpha last where it has one."""

    image: pyvips.Image
    """8 or 16 bits a sample; its pixels are decoded when they are first read."""
    alpha: bool
    notes: tuple[str, ...] = ()
    """What was changed to make it so, a line each."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width (px)."""
        return self.image.height, self.image.width

    @property
    def depth(self) -> int:
        """8 or 16 bits a sample."""
        return _DEPTHS[self.image.format]

    @property
    def opaque(self) -> bool:
        """Whether there is alpha that hides nothing.

        Raises:
            BadImage: the file is damaged.
        """
        import pyvips

        if not self.alpha:
            return False
        try:
            lowest = self.image.extract_band(self.image.bands - 1).min()
        except pyvips.Error as error:
            raise BadImage(f"broken: {vips_line(error)}") from error
        return bool(lowest == 2**self.depth - 1)

    def read(self, top: int, bottom: int, left: int, right: int) -> Samples:
        """uint8 or uint16 [bottom - top, right - left, C].

        Raises:
            BadImage: the file is damaged.
        """
        import pyvips

        try:
            part = self.image.crop(left, top, right - left, bottom - top).numpy()
        except pyvips.Error as error:
            raise BadImage(f"broken: {vips_line(error)}") from error
        return part.reshape(bottom - top, right - left, self.image.bands)


def open_picture(path: Path, max_megapixels: float) -> Picture:
    """Looks at the header of a file and prepares reading it.

    RGB and grey keep their samples and their ICC profile; CMYK and CIELAB become sRGB. EXIF
    orientation is applied.

    Args:
        path: any file.
        max_megapixels: larger pictures are refused from their header alone.

    Raises:
        BadImage: it is refused; one line.
    """
    vips = load_vips()
    facts = inspect(path, max_megapixels, decode=False)
    if facts.mode == "LAB":
        return Picture(_from_array(_srgb_of_lab(path)), False, ("CIELAB made sRGB",))
    try:
        # A source and not a name: in a name, brackets would be libvips' options.
        source = vips.Source.new_from_file(str(path))
        image = vips.Image.new_from_source(source, "", access="random", fail_on="error")
        return _prepared(image.autorot())
    except vips.Error as error:
        if "known format" not in str(error):
            raise BadImage(f"broken: {vips_line(error)}") from error
    return Picture(_from_array(_by_pillow(path, facts, max_megapixels)), False)


def load_vips() -> Any:
    """The module pyvips, set for files that nobody vouches for.

    Raises:
        BadImage: libvips is missing.
    """
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise BadImage('libvips is missing: pip install "pyvips[binary]"') from error
    pyvips.block_untrusted_set(True)
    pyvips.cache_set_max(0)  # it goes by file name, and files change
    return pyvips


def vips_line(error: Exception) -> str:
    """The first line of libvips' message that says something, without the call it came from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("unable to call")]
    return (told or lines or [type(error).__name__])[0][:120]


def _prepared(image: pyvips.Image) -> Picture:
    if image.format not in _DEPTHS:
        what = "floating-point" if image.format in ("float", "double") else "signed or 32-bit"
        raise BadImage(f"{what} samples, which have no fixed white")
    alpha = bool(image.hasalpha())
    notes: list[str] = []
    if image.interpretation == "cmyk":
        image = _srgb_of_cmyk(image, notes)
    elif image.interpretation in ("lab", "labs", "labq"):
        image = image.colourspace(_SRGB[_DEPTHS[image.format]])
        notes.append("CIELAB made sRGB")
    colours = image.bands - alpha
    if colours not in (1, 3):
        raise BadImage(f"{colours} channels beside alpha: neither grey nor RGB")
    return Picture(*_with_fitting_profile(image, alpha, notes), tuple(notes))


def _srgb_of_cmyk(image: pyvips.Image, notes: list[str]) -> pyvips.Image:
    import pyvips

    depth = _DEPTHS[image.format]
    own = image.get_typeof(_PROFILE) != 0
    try:
        # Without a profile of its own libvips takes a general one of a printing press.
        converted = image.icc_transform(
            "srgb", embedded=True, input_profile="cmyk", intent="perceptual", depth=depth
        )
    except pyvips.Error as error:
        raise BadImage("ICC profile is broken or made for other pixels") from error
    notes.append("CMYK made sRGB" + ("" if own else " by a general profile, having none"))
    return converted


def _with_fitting_profile(
    image: pyvips.Image, alpha: bool, notes: list[str]
) -> tuple[pyvips.Image, bool]:
    """An ICC profile for other channels than the picture has would spoil the file that is written.

    Grey with a profile for RGB becomes RGB; a profile that fits in no way is left out.
    """
    if image.get_typeof(_PROFILE) == 0:
        return image, alpha
    space = bytes(image.get(_PROFILE))[16:20]
    grey = image.bands - alpha == 1
    if space == (b"GRAY" if grey else b"RGB "):
        return image, alpha
    if grey and space == b"RGB ":
        bands = image.bandsplit()
        rgb = bands[0].bandjoin([bands[0], bands[0], *bands[1:]])
        return rgb.copy(interpretation=_SRGB[_DEPTHS[image.format]]), alpha
    notes.append("an ICC profile for other channels was left out")
    image = image.copy()
    image.remove(_PROFILE)
    return image, alpha


def _by_pillow(path: Path, facts: ImageFacts, max_megapixels: float) -> np.ndarray:
    """BMP, PNM and JPEG 2000, whose loaders in libvips are not for untrusted files."""
    pixels = decode_rgb(path.read_bytes(), max_megapixels)
    return pixels[..., :1] if facts.mode in ("1", "L", "I;16") else pixels


def _srgb_of_lab(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=("TIFF",)) as image:
            transform = ImageCms.buildTransform(
                ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
            )
            converted = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise BadImage(f"broken: {error}") from error
    assert converted is not None
    return np.asarray(converted)


def _from_array(pixels: np.ndarray) -> pyvips.Image:
    import pyvips

    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
    return image.copy(interpretation="srgb" if pixels.shape[2] == 3 else "b-w")
