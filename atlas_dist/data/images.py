"""Picture bytes -> 8-bit RGB as a viewer shows it. The one decoder of packing, streaming, verifying and predicting.

Formats are told by content, never by name, and only those of `KINDS` are opened. Two decoders stand behind it: simplejpeg, for
plain JPEGs whose pixels it is known to give like Pillow (tests/unit/data/test_pictures.py compares them), and Pillow for
everything else, what simplejpeg refuses included. So a picture is either readable everywhere or nowhere.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from atlas_dist.core.types import Resample
from atlas_dist.data.colour import from_lab, in_srgb
from atlas_dist.data.greys import as_tagged, eight_bits
from atlas_dist.data.leftout import UnusableError
from atlas_dist.data.mended import mended, on_its_canvas, opaque
from atlas_dist.data.plain_jpeg import ORIENTATION, is_plain_jpeg

Pixels = NDArray[np.uint8]

PIXEL_CAP = 1 << 26
"""Largest image that is decoded, in pixels (64 Mi): what a decompression bomb may cost."""

JPEG_QUALITY = 95

_PILLOW = {
    "jpg": ("JPEG",),
    "png": ("PNG",),
    "webp": ("WEBP",),
    "gif": ("GIF",),
    "bmp": ("BMP",),
    "tif": ("TIFF",),
    "avif": ("AVIF",),
}
KINDS = tuple(_PILLOW)
"""What is read; of a picture that moves, the first frame."""

_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the picture", "Run `git lfs pull` in the data set."),
    (b"<!doctype html", "an HTML page, not a picture", "Download it again."),
    (b"<html", "an HTML page, not a picture", "Download it again."),
    (b"<svg", "an SVG drawing, not a picture of pixels", ""),
    (b"<?xml", "an XML file, not a picture of pixels", ""),
    (b"%pdf", "a PDF, not a picture", ""),
    (b"8bps", "a Photoshop file", ""),
    (b"\0\0\1\0", "an icon file", ""),
    (b"\xff\x0a", "a JPEG XL picture", ""),
    (b"\0\0\0\x0cjxl ", "a JPEG XL picture", ""),
    (b"\0\0\0\x0cjp  ", "a JPEG 2000 picture", ""),
)
_CONVERT = "Convert it to JPEG or PNG."


class PictureError(UnusableError):
    """A picture that cannot be used."""

    def __init__(self, message: str, *, fix: str = "", reason: str = "damaged picture") -> None:
        super().__init__(message, fix=fix, reason=reason)


@dataclass(frozen=True)
class PictureLimits:
    """What a picture may cost."""

    pixels: int = PIXEL_CAP
    """Most pixels, width times height."""


LIMITS = PictureLimits()


def sniff(data: bytes | memoryview) -> str:
    """The kind of picture, one of `KINDS`, by the first bytes. Raises PictureError saying what it is instead."""
    head = bytes(data[:32])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tif"
    if head[:2] == b"BM" and len(data) > 26:
        return "bmp"
    if head[4:8] == b"ftyp":
        brands = bytes(data[8:64])
        if b"avif" in brands or b"avis" in brands:
            return "avif"
        raise PictureError("it is a HEIC picture or a film.", fix=_CONVERT, reason="not a picture that is read")
    if not head:
        raise PictureError("it is empty.", reason="empty file")
    for begin, what, fix in _FOREIGN:
        if head.removeprefix(b"\xef\xbb\xbf").lower().lstrip().startswith(begin) or head.startswith(begin):
            raise PictureError(f"it is {what}.", fix=fix or _CONVERT, reason="not a picture that is read")
    raise PictureError(
        f"it is neither JPEG nor PNG, WebP, GIF, BMP, TIFF or AVIF (it starts with {head[:8].hex()}).",
        fix=_CONVERT,
        reason="not a picture that is read",
    )


def decode_picture(data: bytes | memoryview, limits: PictureLimits = LIMITS) -> Pixels:
    """RGB uint8 [H, W, 3], as a viewer shows the picture.

    EXIF orientation is applied; palettes become colours; transparency is laid over white; 16-bit greys and greys of other
    depths are scaled to 0 … 255; CMYK becomes RGB; a profile's colours become sRGB's. Of what moves, the first frame.

    Raises:
        PictureError: not one of `KINDS`, cut, damaged, or larger than the limits.
    """
    if sniff(data) == "jpg":
        fast = decode_plain_jpeg(data, limits)
        if fast is not None:
            return fast
    return np.asarray(_opened(data, limits))


def decode_plain_jpeg(
    data: bytes | memoryview,
    limits: PictureLimits = LIMITS,
    *,
    at_least: tuple[int, int] | None = None,
    out: Pixels | None = None,
) -> Pixels | None:
    """The fast path: pixels of a JPEG that needs nothing but decoding; None for every other, which Pillow then judges.

    Args:
        at_least: (height, width): one that is larger both ways may be decoded at the smallest DCT scale that is not smaller.
        out: where to decode to when it has the picture's size.

    Raises:
        PictureError: larger than the limits.
    """
    if not is_plain_jpeg(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, limits)
        if colours not in ("YCbCr", "Gray"):
            return None
        if out is not None and (height, width) == out.shape[:2]:
            simplejpeg.decode_jpeg(data, "RGB", buffer=out)
            return out
        least: dict[str, int] = {}
        if at_least is not None and height > at_least[0] and width > at_least[1]:
            least = {"min_height": at_least[0], "min_width": at_least[1], "min_factor": 1}
        decoded: Pixels = simplejpeg.decode_jpeg(data, "RGB", **least)
    except ValueError:
        return None  # strict as it is, it refuses what viewers show
    return decoded


def open_rgb(data: bytes | memoryview, limits: PictureLimits = LIMITS) -> Image.Image:
    """`decode_picture` as a Pillow image of mode RGB. Raises as that does."""
    return Image.fromarray(decode_picture(data, limits))


def rgb_of(image: Image.Image) -> Image.Image:
    """What a viewer shows of an opened picture, mode RGB: see `decode_picture`. Raises PictureError: it is cut or damaged."""
    try:
        return _shown(image)
    except PictureError:
        raise
    except Exception as error:
        raise _damaged(error) from error


FILTERS = {
    Resample.BICUBIC: Image.Resampling.BICUBIC,
    Resample.BILINEAR: Image.Resampling.BILINEAR,
    Resample.LANCZOS: Image.Resampling.LANCZOS,
}
"""Pillow's own, which look at all pixels that become one."""


def resized(pixels: Pixels, width: int, height: int, resample: Resample) -> Image.Image:
    """RGB pixels as a picture of another size."""
    return Image.fromarray(pixels).resize((width, height), FILTERS[resample])


def stored_form(data: bytes, size: int, resample: Resample = Resample.BICUBIC) -> tuple[str, bytes]:
    """(extension, bytes) to store: square `size` x `size` when the picture is larger on any side, else as it came.

    Smaller JPEGs and PNGs keep their bytes, since enlarging adds nothing that the stream cannot add; the other kinds become
    PNG, so that shards hold only what every WebDataset reader knows. Every picture is decoded once, by the decoder that the
    stream has: a packed split holds no unreadable one. A resized JPEG stays JPEG, the rest PNG.

    Args:
        size: side in pixels of the backbone's input; 0 = keep as it is.
        resample: how it becomes that.

    Raises:
        PictureError: the picture cannot be read.
    """
    return (_stored_once if len(data) <= _REMEMBERED_BYTES else _stored)(data, size, resample)


_REMEMBERED_BYTES = 16 << 10
"""Pictures up to this size are remembered: a data set with many questions a picture names the same small ones again and again."""


def _stored(data: bytes, size: int, resample: Resample) -> tuple[str, bytes]:
    kind = sniff(data)
    pixels = decode_picture(data)
    if not size or (pixels.shape[1] <= size and pixels.shape[0] <= size):
        return (kind, data) if kind in ("jpg", "png") else ("png", _png(Image.fromarray(pixels)))
    small = resized(pixels, size, size, resample)
    if kind != "jpg":
        return "png", _png(small)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return kind, out.getvalue()


_stored_once = lru_cache(maxsize=1024)(_stored)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=6)
    return out.getvalue()


def _check_size(width: int, height: int, limits: PictureLimits) -> None:
    if width * height > limits.pixels:
        raise PictureError(
            f"{width} x {height} pixels are more than the limit of {limits.pixels}.",
            fix="Store it smaller.",
            reason="too many pixels",
        )


def check_pixels(data: bytes, limits: PictureLimits) -> None:
    """Look at the header alone. Raises PictureError: no picture that is read, or one that is larger than the limits."""
    kind = sniff(data)
    try:
        width, height = Image.open(io.BytesIO(data), formats=_PILLOW[kind]).size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        width, height = limits.pixels + 1, 1
    except Exception:  # damaged: the decoder says how, and mends some
        return
    _check_size(width, height, limits)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _opened(data: bytes | memoryview, limits: PictureLimits) -> Image.Image:
    kind = sniff(data)
    try:
        return _as_it_is(kind, data, limits)
    except PictureError as error:
        whole = None if error.reason == "too many pixels" else mended(kind, bytes(data))
        if whole is None:
            raise
        return _as_it_is(kind, whole, limits)


def _as_it_is(kind: str, data: bytes | memoryview, limits: PictureLimits) -> Image.Image:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_PILLOW[kind])
        _check_size(image.width, image.height, limits)
        return _shown(image)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"it has more pixels than the limit of {limits.pixels}.", fix="Store it smaller.", reason="too many pixels"
        ) from error
    except UnidentifiedImageError as error:
        raise PictureError(
            f"it is a damaged {_PILLOW[kind][0]} picture, or one of a kind that is not read.", fix=_CONVERT
        ) from error
    except Exception as error:  # plugins raise what comes: struct.error, KeyError, SyntaxError, OSError, …
        raise _damaged(error) from error


def _damaged(error: Exception) -> PictureError:
    text = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return PictureError(f"damaged image: {text}")


_BITS, _PLANES, _APART = 258, 284, 2
"""Tags of a TIFF: bits a sample; how colours lie, and the value that says plane by plane."""


def _shown(image: Image.Image) -> Image.Image:
    """An opened picture as a viewer shows it, mode RGB. Raises whatever Pillow does."""
    image.load()
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANES) == _APART and max(tags.get(_BITS, (1,))) > 8:
        raise PictureError(  # Pillow reads other pixels than there are
            "it is a TIFF with colours of 16 bits, each in a plane of its own.",
            fix=_CONVERT,
            reason="not a picture that is read",
        )
    clear = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in clear)  # of a PNG of 16 bits, whose pixels were cut to 8
    shown = _flattened(as_tagged(_turned(opaque(image)), tags))
    return on_its_canvas(shown, image)


def _turned(image: Image.Image) -> Image.Image:
    """As its EXIF says how it was held. An EXIF block that cannot be read turns nothing: viewers show such pictures as they
    are."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return image
    if orientation not in _TURNS:
        return image
    turned = image.transpose(_TURNS[orientation])
    if "transparency" in image.info:
        turned.info["transparency"] = image.info["transparency"]
    return turned


def _flattened(image: Image.Image) -> Image.Image:
    """Any mode to RGB on white, in sRGB."""
    profile = image.info.get("icc_profile")
    if image.mode == "LAB":
        return from_lab(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image, profile = eight_bits(image), profile if image.mode.startswith("I;") else None
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
        layered = image.convert(straight) if straight else image
        layered = in_srgb(layered if layered.mode == "LA" else layered.convert("RGBA"), profile).convert("RGBA")
        under = Image.new("RGBA", layered.size, "white")
        under.alpha_composite(layered)
        return under.convert("RGB")
    if image.mode not in ("L", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    shown = in_srgb(image, profile).convert("RGB")
    shown.info.pop("icc_profile", None)  # whoever saves it must not say so again
    return shown
