"""Raw image bytes -> the bytes that go into a tar. Only JPEG and PNG, told by their content, never by their name."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from atlas_dist.errors import DataError

PIXEL_CAP = 1 << 26
"""Largest image that is decoded, in pixels (64 Mi): what a decompression bomb may cost."""

JPEG_QUALITY = 95


def sniff(data: bytes | memoryview) -> str:
    """`jpg` or `png` by the first bytes. Raises DataError for anything else."""
    head = bytes(data[:8])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head == b"\x89PNG\r\n\x1a\n":
        return "png"
    raise DataError(f"neither JPEG nor PNG (it starts with {head.hex()})")


def open_rgb(data: bytes | memoryview, *, draft: int = 0) -> Image.Image:
    """Decode to an RGB image; transparency is laid over white, as viewers show it.

    Args:
        draft: when positive, a JPEG may be decoded at a smaller DCT scale whose sides are at least this many pixels.

    Raises:
        DataError: not an image, cut, damaged, or larger than `PIXEL_CAP`.
    """
    sniff(data)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        if image.width * image.height > PIXEL_CAP:
            raise DataError(f"{image.width} x {image.height} pixels are more than {PIXEL_CAP}")
        if draft:
            image.draft("RGB", (draft, draft))
        image.load()
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            layered = image.convert("RGBA")
            image = Image.new("RGBA", layered.size, "white")
            image.alpha_composite(layered)
        return image.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"damaged image: {str(error)[:120]}") from error


def stored_form(data: bytes, size: int) -> tuple[str, bytes]:
    """(extension, bytes) to store: square `size` x `size` when the image is larger on any side, else the original bytes.

    Smaller images keep their bytes, since enlarging adds nothing that the stream cannot add. Every image is decoded once, so that
    a packed split holds no unreadable one. A resized JPEG stays JPEG, a PNG stays PNG.

    Args:
        size: side in pixels of the backbone's input; 0 = keep as it is.

    Raises:
        DataError: the image cannot be read.
    """
    kind = sniff(data)
    image = open_rgb(data)
    if not size or (image.width <= size and image.height <= size):
        return kind, data
    small = image.resize((size, size), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    if kind == "jpg":
        small.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        small.save(out, "PNG", compress_level=6)
    return kind, out.getvalue()
