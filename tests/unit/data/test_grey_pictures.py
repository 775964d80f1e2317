"""Greys and colours of 16 and 32 bits, and what the tags of a TIFF say of them."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from atlas_dist.data.images import PictureError, decode_picture, stored_form
from tests.kits.pictures import saved, scene


def test_greys_of_16_bits_are_scaled_not_cut() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for how in ("PNG", "TIFF"):
        pixels = decode_picture(saved(Image.fromarray(ramp), format=how))
        assert (pixels[..., 0] == np.rint(ramp / 257)).all() and (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 1e6])
def test_float_greys_are_scaled_by_the_range_that_holds_them(top: float) -> None:
    ramp = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
    pixels = decode_picture(saved(Image.fromarray(ramp), format="TIFF"))
    assert np.abs(pixels[..., 1].astype(int).ravel() - np.arange(256)).max() <= 1
    ramp[0, 0] = np.nan
    assert decode_picture(saved(Image.fromarray(ramp), format="TIFF"))[0, 0, 0] == 0


def tiff(bits: int, samples: bytes, photometric: int = 1, sample_format: int = 1, order: str = "<") -> bytes:
    """Two grey pixels beside each other, with tags that Pillow does not write."""
    tags = [(256, 2), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1), (278, 1), (279, len(samples))]
    tags.append((339, sample_format))
    begin = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(f"{order}HHIH2x", tag, 3, 1, begin if tag == 273 else value) for tag, value in tags)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + samples


@pytest.mark.parametrize(
    ("data", "greys"),
    [
        (tiff(16, struct.pack("<2H", 0, 65535)), (0, 255)),
        (tiff(16, struct.pack(">2H", 0, 65535), order=">"), (0, 255)),
        (tiff(16, struct.pack("<2H", 0, 65535), photometric=0), (255, 0)),
        (tiff(8, b"\0\xff", photometric=0), (255, 0)),
        (tiff(12, b"\xff\xf8\x00"), (255, 128)),
        (tiff(32, struct.pack("<2I", 0, 4294967295)), (0, 255)),
        (tiff(32, struct.pack("<2i", -8, 1000), sample_format=2), (0, 255)),
        (tiff(16, struct.pack("<2h", -8, 1000), sample_format=2), (0, 255)),
        (tiff(4, b"\x0f"), (0, 255)),
    ],
)
def test_greys_of_a_tiff_mean_what_its_tags_say(data: bytes, greys: tuple[int, int]) -> None:
    pixels = decode_picture(data)
    assert pixels[0, :, 0].tolist() == list(greys)
    assert (decode_picture(stored_form(data, 0)[1]) == pixels).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_planes_of_a_tiff_are_put_together_or_refused(bits: int) -> None:
    """Pillow reads those of 16 bits, and reads other pixels."""
    pixels = np.asarray(scene()).astype(f"<u{bits // 8}") * (257 if bits == 16 else 1)
    planes = [np.ascontiguousarray(pixels[..., c]).tobytes() for c in range(3)]
    lists = {258: [bits] * 3, 273: [0, 0, 0], 279: [len(p) for p in planes]}
    single = {256: 24, 257: 16, 259: 1, 262: 2, 277: 3, 278: 16, 284: 2}
    behind = 8 + 2 + 12 * (len(lists) + len(single)) + 4
    lists[273] = [behind + 36 + sum(map(len, planes[:c])) for c in range(3)]
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in single.items()]
    entries += [struct.pack("<HHII", tag, 4, 3, behind + 12 * n) for n, tag in enumerate(lists)]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(sorted(entries, key=lambda e: e[1] << 8 | e[0])) + bytes(4)
    data = head + b"".join(struct.pack("<3I", *values) for values in lists.values()) + b"".join(planes)
    if bits == 8:
        assert (decode_picture(data) == np.asarray(scene())).all()
    else:
        with pytest.raises(PictureError, match="16 bits, each in a plane of its own"):
            decode_picture(data)


def test_a_form_of_a_kind_that_is_not_read_is_called_so() -> None:
    for data in (tiff(64, struct.pack("<2d", 0, 1), sample_format=3), b"\xff\xd8\xff"):
        with pytest.raises(PictureError, match=r"damaged (TIFF|JPEG) picture, or one of a kind that is not read"):
            decode_picture(data)


def test_a_colour_of_16_bits_that_is_clear_is_white() -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)) + chunk(b"tRNS", struct.pack(">3H", 700, 800, 900))
    body = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">6H", 700, 800, 900, 257, 257, 257))) + chunk(b"IEND", b"")
    assert decode_picture(b"\x89PNG\r\n\x1a\n" + head + body)[0].tolist() == [[255, 255, 255], [1, 1, 1]]


def test_integer_greys_of_32_bits_are_scaled() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.int32).reshape(16, 16)
    pixels = decode_picture(saved(Image.fromarray(ramp), format="TIFF"))
    assert np.abs(pixels[..., 1].astype(int).ravel() - np.arange(256)).max() <= 1
