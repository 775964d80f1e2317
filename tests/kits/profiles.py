"""Colour profiles made by hand, since Pillow makes none but sRGB's: RGB with other primaries, greys with another curve, inks."""

from __future__ import annotations

import struct
from itertools import product

from PIL import ImageCms

P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
"""Display P3's red, green and blue, XYZ adapted to D50."""
ADOBE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
_D50 = (0.9642, 1.0, 0.8249)


def rgb_profile(primaries: tuple[tuple[float, float, float], ...] = P3, gamma: float = 2.2) -> bytes:
    """A matrix profile with one curve."""
    colorants = {name: _xyz(xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(gamma))
    return _profile(b"mntr", b"RGB ", b"XYZ ", {**colorants, **curves})


def grey_profile(gamma: float) -> bytes:
    """Greys with the curve `gamma`."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _gamma(gamma)})


def ink_profile() -> bytes:
    """Four inks of a press whose yellow is strong and whose cyan is a weak green: nobody's, but far from 1 - ink."""

    def lab(c: int, m: int, y: int, k: int) -> bytes:
        light = 100 * (1 - 0.3 * c) * (1 - 0.5 * m) * (1 - 0.05 * y) * (1 - 0.9 * k)
        return bytes((round(light * 2.55), 128 - 40 * c + 60 * m, 128 + 20 * c + 70 * y))

    grid = b"".join(lab(*corner) for corner in product((0, 1), repeat=4))
    unit = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 16)
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + unit + ramp * 4 + grid + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def srgb_profile() -> bytes:
    """The one that most pictures carry."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _profile(kind: bytes, space: bytes, between: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    every = {b"desc": text, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": _xyz(_D50), **tags}
    at = 128 + 4 + 12 * len(every)
    table, body = struct.pack(">I", len(every)), b""
    for name, content in every.items():
        padded = content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += padded
    size = 128 + len(table) + len(body)
    head = struct.pack(">I", size) + bytes(4) + struct.pack(">I", 0x02400000) + kind + space + between
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3i", *_fixed(_D50))
    return head.ljust(128, b"\0") + table + body


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *_fixed(values))


def _fixed(values: tuple[float, float, float]) -> list[int]:
    return [round(value * 65536) for value in values]


def _gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))
