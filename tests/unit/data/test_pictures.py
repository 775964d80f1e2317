"""One decoder: what packing accepts, the stream reads, to the pixels that a viewer shows."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atlas_dist.data.images import PictureError, PictureLimits, decode_picture, decode_plain_jpeg, rgb_of, stored_form
from atlas_dist.errors import DataError
from tests.kits.pictures import saved, scene, streamed

LOSSLESS = {
    "png": {"format": "PNG"},
    "gif": {"format": "GIF"},
    "bmp": {"format": "BMP"},
    "tif": {"format": "TIFF"},
    "webp": {"format": "WEBP", "lossless": True},
}
LOSSY = {
    "jpg": {"format": "JPEG", "quality": 92},
    "progressive": {"format": "JPEG", "progressive": True},
    "avif": {"format": "AVIF", "quality": 90},
    "webp-lossy": {"format": "WEBP", "quality": 90},
}
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "LAB")


@pytest.mark.parametrize("how", [*LOSSLESS, *LOSSY])
def test_every_kind_is_read_and_stored_as_what_every_shard_reader_knows(how: str) -> None:
    data = saved(scene(), **{**LOSSLESS, **LOSSY}[how])
    pixels = decode_picture(data)
    assert np.abs(pixels.astype(int) - np.asarray(scene())).mean() < 8
    kind, stored = stored_form(data, 32)
    assert kind in ("jpg", "png")
    assert (streamed(stored, *pixels.shape[:2]) == pixels).all()


def test_jpeg_and_png_that_need_nothing_keep_their_bytes() -> None:
    """So the digests of what was packed before stay."""
    for how in (LOSSLESS["png"], LOSSY["jpg"], LOSSY["progressive"]):
        data = saved(scene(), **how)
        assert stored_form(data, 32)[1] == data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", ["jpg", "png", "webp", "tif", "avif"])
def test_a_picture_is_turned_as_its_exif_says(how: str, orientation: int) -> None:
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    held = scene() if undo is None else scene().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(held, **{**LOSSLESS, **LOSSY}[how], exif=exif)
    pixels = decode_picture(data)
    assert pixels.shape == (16, 24, 3)
    assert np.abs(pixels.astype(int) - np.asarray(scene())).mean() < 8
    _, stored = stored_form(data, 32)
    assert (streamed(stored, 16, 24) == pixels).all()
    _, small = stored_form(data, 8)
    assert np.abs(streamed(small, 8, 8).astype(int) - np.asarray(scene().resize((8, 8), Image.Resampling.BICUBIC))).mean() < 10


def test_an_orientation_in_xmp_counts_and_a_broken_exif_turns_nothing() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    turned = saved(scene().transpose(Image.Transpose.ROTATE_180), format="JPEG", quality=95, xmp=xmp)
    assert np.abs(decode_picture(turned).astype(int) - np.asarray(scene())).mean() < 8
    broken = saved(scene(), format="JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert np.abs(decode_picture(broken).astype(int) - np.asarray(scene())).mean() < 8


@pytest.mark.parametrize("sub", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_fast_path_gives_the_pixels_of_pillow(mode: str, sub: int, progressive: bool) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (9, 11, 3), np.uint8)
    for size in ((1, 1), (7, 5), (33, 17), (64, 64)):
        image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)
        data = saved(image, format="JPEG", quality=80, subsampling=sub, progressive=progressive)
        fast = decode_plain_jpeg(data)
        assert fast is not None
        assert (fast == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()


def test_stray_bytes_before_a_marker_are_read_as_viewers_do() -> None:
    data = saved(scene(), format="JPEG", quality=92)
    at = data.find(b"\xff\xdb")
    odd = data[:at] + bytes(3) + data[at:]
    assert (decode_picture(odd) == decode_picture(data)).all()
    assert (streamed(stored_form(odd, 64)[1], 16, 24) == decode_picture(data)).all()


def transparent(mode: str) -> tuple[Image.Image, dict[str, Any]]:
    """Left half clear, right half black."""
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, 4:] = 255
    black = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    black.putalpha(Image.fromarray(alpha))
    if mode in ("RGBA", "LA"):
        return black.convert(mode), {}
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([10, 200, 10, 0, 0, 0])
        image.paste(1, (4, 0, 8, 8))
        return image, {"transparency": 0}
    image = Image.new(mode, (8, 8), {"L": 7, "RGB": (7, 8, 9), "I;16": 700}[mode])
    image.paste(0, (4, 0, 8, 8)) if mode != "RGB" else image.paste((0, 0, 0), (4, 0, 8, 8))
    return image, {"transparency": {"L": 7, "RGB": (7, 8, 9), "I;16": 700}[mode]}


CLEAR = {
    "PNG": ("RGBA", "LA", "P", "L", "RGB", "I;16"),
    "GIF": ("RGBA", "P"),
    "WEBP": ("RGBA", "LA"),
    "TIFF": ("RGBA", "LA"),
    "AVIF": ("RGBA", "LA"),
}


@pytest.mark.parametrize(("how", "mode"), [(how, mode) for how, modes in CLEAR.items() for mode in modes])
def test_what_is_transparent_is_white(how: str, mode: str) -> None:
    image, more = transparent(mode)
    data = saved(image, format=how, **more, **({"lossless": True} if how == "WEBP" else {}))
    pixels = decode_picture(data)
    assert pixels[:, :3].min() > 245 and pixels[:, 5:].max() < 10
    assert (streamed(stored_form(data, 16)[1], 8, 8) == pixels).all()


def test_cmyk_and_ycck_are_not_inverted() -> None:
    white = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    for how in ("JPEG", "TIFF"):
        assert decode_picture(saved(white, format=how)).min() > 245
    assert decode_picture(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), format="TIFF"))[0, 0].tolist() == [255, 0, 0]


def test_lab_is_shown_in_colours() -> None:
    lab = Image.new("LAB", (8, 8), (255, 128, 128))
    assert decode_picture(saved(lab, format="TIFF")).min() > 245


@pytest.mark.parametrize("how", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_what_moves_the_first_frame_is_taken(how: str) -> None:
    frames = [Image.new("RGB", (16, 16), c) for c in ("red", "blue", "green")]
    data = saved(frames[0], format=how, save_all=True, append_images=frames[1:])
    assert np.abs(decode_picture(data)[0, 0].astype(int) - [255, 0, 0]).max() < 6


def test_the_limit_is_said() -> None:
    data = saved(Image.new("RGB", (100, 50)), format="PNG")
    for form in (data, saved(Image.new("RGB", (100, 50)), format="JPEG")):
        with pytest.raises(PictureError, match=r"100 x 50 pixels are more than the limit of 4999") as refused:
            decode_picture(form, PictureLimits(pixels=4999))
        assert refused.value.reason == "too many pixels"
        decode_picture(form, PictureLimits(pixels=5000))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "HTML page"),
        (b"<svg xmlns='x'/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"%PDF-1.7", "PDF"),
        (b"hello there", "neither JPEG nor PNG"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(data: bytes, said: str) -> None:
    with pytest.raises(PictureError, match=said):
        decode_picture(data)


def chunk(name: bytes, content: bytes, *, sound: bool = True) -> bytes:
    """A chunk of a PNG; not `sound`: its checksum is wrong."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) ^ (not sound))


WORKFLOW = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"y" * (2 << 20)))
"""As programs that draw pictures leave it; Pillow takes one megabyte at most."""


@pytest.mark.parametrize(
    "beside",
    [
        WORKFLOW,
        b"".join(chunk(b"tEXt", b"k%d\0" % n + b"z" * 1_000_000) for n in range(70)),
        chunk(b"tEXt", b"a\0b", sound=False),
        chunk(b"iTXt", b"abc"),
        chunk(b"gAMA", b"g"),
        chunk(b"sRGB", b""),
        chunk(b"iCCP", b"garbage"),
    ],
)
def test_what_stands_beside_the_pixels_of_a_png_spoils_none(beside: bytes) -> None:
    plain = saved(scene(), format="PNG")
    data = plain[:33] + beside + plain[33:]
    assert (decode_picture(data) == np.asarray(scene())).all()
    ext, stored = stored_form(data, 0)
    assert ext == "png" and (streamed(stored, 16, 24) == np.asarray(scene())).all()


def test_a_png_is_turned_and_clear_whatever_stands_beside() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    clear, _ = transparent("RGBA")
    plain = saved(clear, format="PNG", exif=exif)
    wanted = np.zeros((8, 8, 3), np.uint8)
    wanted[:4] = 255
    assert (decode_picture(plain) == wanted).all()
    assert (decode_picture(plain[:33] + WORKFLOW + plain[33:]) == wanted).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("tail", [b"", b"\0" * 40, b"\xff"])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_whole(mode: str, tail: bytes) -> None:
    """Cameras and scripts forget it; every viewer shows such a picture. One that is cut within its pixels is still refused."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({}, {"exif": exif}):
        data = saved(scene().convert(mode), format="JPEG", quality=92, **options)
        assert data.endswith(b"\xff\xd9")
        assert (decode_picture(data[:-2] + tail) == decode_picture(data)).all()
        _, stored = stored_form(data[:-2] + tail, 0)
        assert (streamed(stored, *decode_picture(data).shape[:2]) == decode_picture(data)).all()
        with pytest.raises(PictureError, match=r"[tT]runcated"):
            decode_picture(data[:-6])


def test_a_progressive_jpeg_without_its_end_may_lack_a_scan() -> None:
    data = saved(scene(), format="JPEG", progressive=True)
    with pytest.raises(PictureError, match="truncated"):
        decode_picture(data[:-2])


def test_a_bmp_whose_fourth_channel_nobody_filled_is_opaque() -> None:
    pixels = np.asarray(scene())
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 108, 24, 16, 1, 32, 3, 24 * 16 * 4, 2835, 2835, 0, 0) + masks + bytes(52)

    def bmp(alpha: int) -> bytes:
        body = np.dstack([pixels[::-1, :, ::-1], np.full((16, 24), alpha)]).astype(np.uint8).tobytes()
        return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, 14 + len(head)) + head + body

    assert (decode_picture(bmp(0)) == pixels).all()
    assert (decode_picture(bmp(255)) == pixels).all()


def test_what_the_first_frame_of_a_gif_does_not_cover_is_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([200, 0, 0] + [0, 0, 200] * 255)
    data = bytearray(saved(image, format="GIF"))
    frame = data.index(b",\0\0\0\0")
    data[6:10], data[frame + 1 : frame + 5] = struct.pack("<HH", 12, 8), struct.pack("<HH", 3, 2)
    wanted = np.full((8, 12, 3), 255, np.uint8)
    wanted[2:6, 3:7] = (200, 0, 0)
    assert (decode_picture(bytes(data)) == wanted).all()


@settings(max_examples=120, deadline=None)
@given(
    how=st.sampled_from([*LOSSLESS, *LOSSY]),
    mode=st.sampled_from(MODES),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    damage=st.sampled_from(["none", "cut", "flip", "stray", "tail"]),
    at=st.floats(0, 0.999),
    side=st.sampled_from([0, 16, 64]),
)
def test_what_pack_accepts_the_stream_reads_to_the_same_pixels(
    how: str, mode: str, size: tuple[int, int], damage: str, at: float, side: int
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (5, 5, 3), np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    try:
        data = saved(_in_mode(image, mode), **{**LOSSLESS, **LOSSY}[how])
    except (OSError, ValueError, KeyError):
        return  # that format has no such mode
    data = _damaged(data, damage, at)
    try:
        _, stored = stored_form(data, side)
    except DataError:
        with pytest.raises(DataError):
            decode_picture(data)
        with pytest.raises(DataError):
            streamed(data, 20, 20)
        return
    pixels = decode_picture(data)
    if not side or max(pixels.shape[:2]) <= side:
        assert (decode_picture(stored) == pixels).all()
        assert (streamed(stored, *pixels.shape[:2]) == pixels).all()
    assert (streamed(stored, side or 20, side or 20) >= 0).all()


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    grey = np.asarray(image.convert("L"))
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode == "LAB":
        return Image.new("LAB", image.size, (128, 20, 30))
    if mode == "LA":
        return image.convert("RGBA").convert("LA")
    return image.convert(mode)


def _damaged(data: bytes, damage: str, at: float) -> bytes:
    place = int(at * len(data))
    return {
        "none": data,
        "cut": data[:place],
        "flip": data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :],
        "stray": data[:place] + b"\0\0\0" + data[place:],
        "tail": data + b"\0 trailing bytes",
    }[damage]


def test_a_picture_in_memory_is_shown_alike() -> None:
    for mode in ("1", "L", "RGB", "CMYK", "P"):
        image = scene().convert(mode)
        assert rgb_of(image).mode == "RGB"
    clear, _ = transparent("RGBA")
    assert np.asarray(rgb_of(clear))[0, 0].tolist() == [255, 255, 255]


def test_a_picture_that_many_questions_name_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_dist.data import images

    decoded: list[int] = []

    def counted(data: bytes) -> images.Pixels:
        decoded.append(len(data))
        return np.zeros((64, 64, 3), np.uint8)

    monkeypatch.setattr(images, "decode_picture", counted)
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (3, 5, 7)).save(out, "PNG")
    small, large = out.getvalue(), out.getvalue() + bytes(1 << 15)
    assert images.stored_form(small, 32) == images.stored_form(bytes(bytearray(small)), 32)
    assert len(decoded) == 1
    assert images.stored_form(small, 16) != images.stored_form(small, 32), "at each size"
    assert len(decoded) == 2
    for _ in range(2):
        images.stored_form(large, 32)
    assert len(decoded) == 4, "large ones are not kept in memory"
