"""Pictures as files hold them, and as the stream reads them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from atlas_dist.data.decode import decode_into


def saved(image: Image.Image, **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, **how)
    return out.getvalue()


def scene(width: int = 24, height: int = 16) -> Image.Image:
    """Red above blue, the left half darker: every way of turning it looks different."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2] = (230, 20, 20)
    pixels[height // 2 :] = (20, 20, 230)
    pixels[:, : width // 2] //= 2
    return Image.fromarray(pixels)


def streamed(stored: bytes, height: int, width: int) -> np.ndarray:
    out = np.empty((height, width, 3), np.uint8)
    decode_into(memoryview(stored), out)
    return out
