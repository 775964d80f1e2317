"""Damage that takes nothing from a picture, and what its file leaves unsaid: viewers pass over both, and Pillow does not."""

from __future__ import annotations

import struct
import zlib

import simplejpeg
from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_SHOWN = frozenset({b"tRNS", b"iCCP", b"eXIf"})
"""Chunks that say how a picture looks, besides those without which there is none (whose names begin with a capital)."""
_PROGRESSIVE, _SCAN = 0xC2, 0xDA
_END_OF_JPEG = b"\xff\xd9"


def mended(kind: str, data: bytes) -> bytes | None:
    """A picture that Pillow refuses, without what viewers pass over: texts of a PNG (programs write whole workflows there, larger
    than Pillow lets them be) and its damaged side notes; a JPEG whose end marker alone is missing. None = that is not its
    trouble."""
    if kind == "png":
        return _plain_png(data)
    return _ended_jpeg(data) if kind == "jpg" else None


def _plain_png(data: bytes) -> bytes | None:
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, end = data[at + 4 : at + 8], at + 12 + length
        needed = name[:1].isupper()
        sound = data[end - 4 : end] == struct.pack(">I", zlib.crc32(data[at + 4 : end - 4]))
        if needed or (name in _SHOWN and sound and (name != b"iCCP" or _is_profile(data[at + 8 : end - 4]))):
            kept.append(data[at:end])
        at = end
        if name == b"IEND":
            break
    plain = b"".join(kept)
    return plain if len(plain) < min(at, len(data)) else None


def _is_profile(content: bytes) -> bool:
    try:
        return bool(zlib.decompress(content.partition(b"\0")[2][1:]))
    except zlib.error:
        return False


def _ended_jpeg(data: bytes) -> bytes | None:
    """With its end marker, where all the pixels are there: the strict decoder says so of what is cut within them. Of a
    progressive one it cannot tell whether a last scan is missing."""
    cut = data.rstrip(b"\0\r\n")
    ended = cut + _END_OF_JPEG
    if cut.endswith(_END_OF_JPEG) or _frame(data) in (-1, _PROGRESSIVE):
        return None
    try:
        colours = simplejpeg.decode_jpeg_header(ended)[2]
        simplejpeg.decode_jpeg(ended, "CMYK" if colours in ("CMYK", "YCCK") else "RGB")
    except ValueError:
        return None
    return ended


def _frame(data: bytes) -> int:
    """The marker that says how a JPEG is coded; -1 = it has none where one should stand."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SCAN:
        if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):
            return data[at + 1]
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return -1


def opaque(image: Image.Image) -> Image.Image:
    """A BMP whose fourth channel is zero throughout has none: programs leave it unset."""
    if image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        return image.convert("RGB")
    return image


def on_its_canvas(shown: Image.Image, image: Image.Image) -> Image.Image:
    """A GIF whose first frame covers a part of its canvas: the rest is clear, so white."""
    extent = getattr(image, "dispose_extent", None) if image.format == "GIF" else None
    if extent is None or tuple(extent) == (0, 0, *shown.size) or shown.size != image.size:
        return shown
    canvas = Image.new("RGB", shown.size, "white")
    canvas.paste(shown.crop(extent), extent[:2])
    return canvas
