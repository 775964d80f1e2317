"""Greys of more than 8 bits, and those that the tags of a TIFF say more about than Pillow heeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2


def as_tagged(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Greys of a TIFF by what its tags say and Pillow passes over: 12 bits, unsigned 32, white for zero."""
    if image.mode == "I" and tags and _SIGNED not in tags.get(_SAMPLE_FORMAT, (1,)):
        meant = Image.fromarray(np.asarray(image).astype(np.uint32).astype(np.float32)) if image.getextrema()[0] < 0 else image  # type: ignore[operator]
    elif image.mode.startswith("I;16") and tags:
        values = np.asarray(image).astype(np.float64)
        if tags.get(_BITS) == (12,):
            values *= 65535 / 4095
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            values = 65535 - values
        meant = Image.fromarray(np.rint(values).astype(np.uint16))
    else:
        return image
    meant.info = image.info
    return meant


def eight_bits(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bits, scaled to 0 … 255. 16 bits by their full range, so that pictures keep their brightness beside
    each other; integers of 32 bits and floats by the smallest of the ranges 1 (floats), 255, 65535 that holds them, else by
    their own."""
    values = np.asarray(image).astype(np.float64)
    clear = image.info.get("transparency")
    hidden = values == float(clear) if isinstance(clear, int | float) else None
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) if not np.isfinite(values).all() else values
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if image.mode.startswith("I;"):
        scaled = values * (255.0 / 65535.0)
    else:
        ranges: tuple[Any, ...] = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        full = next((top for top in ranges if low >= 0 and high <= top), None)
        scaled = values * (255.0 / full) if full else (values - low) * (255.0 / max(high - low, 1e-12))
    grey = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    if hidden is not None:
        grey[hidden] = 255
    return Image.fromarray(grey)
