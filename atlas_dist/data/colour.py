"""Colour profiles: the colours that a picture means, in the sRGB that viewers show. The only file that knows ImageCms.

A profile whose colours are sRGB's own, as most embedded ones are, changes nothing: such pixels stay bit for bit what they were. A
profile that cannot be used changes nothing either, and is said once.
"""

from __future__ import annotations

import io
import logging
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

PROFILE_CAP = 8 << 20
"""Largest profile that is looked at, in bytes; those of printers have about two million."""
NEAR = 2
"""Steps of 255 within which a profile's colours are taken for sRGB's: writers round its numbers differently."""

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space of a profile -> mode of the pictures that it describes."""
_log = logging.getLogger(__name__)


def changes_colours(profile: bytes) -> bool:
    """Whether pictures with this profile look otherwise than their numbers say."""
    return _transform(profile) is not None


def in_srgb(image: Image.Image, profile: object) -> Image.Image:
    """A picture of mode RGB, L, CMYK (or RGBA, LA: what is clear stays so), in sRGB; as it is where its profile does not describe
    it, cannot be used, or is none.

    Args:
        profile: the bytes of an ICC profile; anything else is none.
    """
    found = _transform(profile) if isinstance(profile, bytes) and profile else None
    if found is None:
        return image
    mode, transform = found
    if image.mode in ("RGBA", "LA"):
        alpha = image.getchannel("A")
        changed = in_srgb(image.convert(image.mode[:-1]), profile).convert("RGB")
        changed.putalpha(alpha)
        return changed
    if image.mode == "L" and mode == "RGB":
        image = image.convert("RGB")
    if image.mode != mode:
        return image
    return transform.apply(image)


def from_lab(image: Image.Image) -> Image.Image:
    """A picture of mode LAB as RGB."""
    found = ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), _srgb(), outputMode="RGB")
    assert found is not None
    return found


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


@lru_cache(maxsize=32)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """(mode of the pictures, how they become sRGB); None where that changes nothing or cannot be done."""
    try:
        if len(profile) > PROFILE_CAP:
            raise ValueError(f"it has {len(profile)} bytes")
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(opened.profile.xcolor_space)
        if mode is None:
            raise ValueError(f"it is one of {opened.profile.xcolor_space.strip()} colours")
        transform = ImageCms.buildTransform(opened, _srgb(), mode, "RGB")
        probe = _probe(mode)
        if mode != "CMYK":
            seen, plain = (np.asarray(i, np.int16) for i in (transform.apply(probe), probe.convert("RGB")))
            if np.abs(seen - plain).max() <= NEAR:
                return None
    except Exception as error:  # whatever a damaged profile brings about
        why = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        _log.warning("a picture's colour profile cannot be used (%s); its colours are taken as they are", why)
        return None
    return mode, transform


def _probe(mode: str) -> Image.Image:
    """A picture of colours all over the space."""
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(27, 27, 3)
    return Image.fromarray(np.ascontiguousarray(grid))
