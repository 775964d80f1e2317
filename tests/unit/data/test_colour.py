"""Colour profiles: what a viewer shows of a picture whose numbers mean other colours than sRGB's, and nothing else changes."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
from PIL import Image, ImageCms

from atlas_dist.data.decode import decode_into
from atlas_dist.data.images import Pixels, decode_picture, decode_plain_jpeg, rgb_of, stored_form
from tests.kits.profiles import ADOBE, P3, grey_profile, ink_profile, rgb_profile, srgb_profile


def colours(mode: str = "RGB") -> Image.Image:
    """Patches all over the cube, 16 x 16 pixels each."""
    steps = [(r, g, b) for r in (0, 128, 255) for g in (40, 200) for b in (0, 255)]
    row = np.repeat(np.array(steps, np.uint8)[None], 16, axis=0)
    image = Image.fromarray(np.ascontiguousarray(np.repeat(row, 16, axis=1)))
    return image.convert(mode)


def saved(image: Image.Image, how: str, profile: bytes | None, **more: object) -> bytes:
    out = io.BytesIO()
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(how, {})
    image.save(out, how, icc_profile=profile, **{**options, **more})
    return out.getvalue()


def as_a_viewer(data: bytes, mode: str) -> Pixels:
    image = Image.open(io.BytesIO(data))
    image.load()
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    shown = ImageCms.profileToProfile(image.convert(mode), profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert shown is not None
    return np.asarray(shown)


def streamed(stored: bytes, like: Pixels) -> Pixels:
    out = np.empty_like(like)
    decode_into(memoryview(stored), out)
    return out


@pytest.mark.parametrize("how", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("primaries", [P3, ADOBE], ids=["p3", "adobe"])
def test_other_primaries_are_shown_in_srgb_and_streamed_alike(
    how: str, primaries: tuple[tuple[float, float, float], ...]
) -> None:
    data = saved(colours(), how, rgb_profile(primaries))
    pixels = decode_picture(data)
    assert (pixels == as_a_viewer(data, "RGB")).all()
    assert np.abs(pixels.astype(int) - np.asarray(colours())).max() > 20, "the profile says something"
    _, stored = stored_form(data, 512)
    assert (streamed(stored, pixels) == pixels).all()
    _, small = stored_form(data, 8)
    resized = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BICUBIC), int)
    assert np.abs(streamed(small, np.empty((8, 8, 3), np.uint8)) - resized).max() <= 12, "and not a second time"


@pytest.mark.parametrize("how", ["JPEG", "TIFF"])
def test_inks_are_mixed_as_their_profile_says(how: str) -> None:
    yellow = Image.new("CMYK", (16, 16), (0, 0, 255, 0))
    data = saved(yellow, how, ink_profile())
    pixels = decode_picture(data)
    assert (pixels == as_a_viewer(data, "CMYK")).all()
    r, g, b = (int(v) for v in pixels[8, 8])
    assert r > 230 and g > 200 and b < 120 and decode_picture(saved(yellow, how, None))[8, 8].tolist() != [r, g, b]
    white = saved(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), how, ink_profile())
    assert decode_picture(white).min() > 245, "no ink is white"
    assert (streamed(stored_form(data, 64)[1], pixels) == pixels).all()


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_greys_follow_their_curve(mode: str) -> None:
    grey = Image.new("L", (8, 8), 128)
    image = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)) if mode == "I;16" else grey.convert(mode)
    for gamma, seen in ((1.0, 188), (2.2, 128)):
        pixels = decode_picture(saved(image, "PNG", grey_profile(gamma)))
        assert abs(int(pixels[4, 4, 0]) - seen) <= 2 and (pixels[4, 4] == pixels[4, 4, 0]).all()


def test_what_is_clear_stays_clear_and_palettes_have_colours() -> None:
    red = Image.new("RGBA", (8, 8), (200, 30, 30, 255))
    red.paste((200, 30, 30, 0), (0, 0, 4, 8))
    pixels = decode_picture(saved(red, "PNG", rgb_profile()))
    opaque = decode_picture(saved(Image.new("RGB", (8, 8), (200, 30, 30)), "PNG", rgb_profile()))
    assert pixels[:, :4].min() == 255 and (pixels[:, 4:] == opaque[:, 4:]).all() and opaque[0, 0, 0] > 210
    palette = Image.new("RGB", (8, 8), (200, 30, 30)).quantize(4)
    assert (decode_picture(saved(palette, "PNG", rgb_profile())) == opaque).all()


@pytest.mark.parametrize("how", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_profile_of_srgb_changes_no_pixel_and_costs_no_detour(how: str, mode: str) -> None:
    plain, tagged = (saved(colours(mode), how, profile) for profile in (None, srgb_profile()))
    assert (decode_picture(plain) == decode_picture(tagged)).all()
    if how == "JPEG":
        assert decode_plain_jpeg(tagged) is not None and decode_plain_jpeg(saved(colours(mode), how, rgb_profile())) is None


@pytest.mark.parametrize(
    "profile",
    [b"", b"garbage", srgb_profile()[:100], rgb_profile()[:200], b"\0" * 4000, ink_profile(), grey_profile(1.0)],
    ids=["empty", "garbage", "cut early", "cut", "zeros", "of inks", "of greys"],
)
@pytest.mark.parametrize("how", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_profile_that_cannot_be_used_changes_nothing(how: str, profile: bytes) -> None:
    plain, odd = saved(colours(), how, None), saved(colours(), how, profile)
    assert (decode_picture(odd) == decode_picture(plain)).all()
    assert (streamed(stored_form(odd, 512)[1], decode_picture(odd)) == decode_picture(plain)).all()


def test_a_broken_profile_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    data = saved(colours(), "PNG", b"a broken one, that no other test has")
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            decode_picture(data)
    assert caplog.text.count("colour profile cannot be used") == 1


def test_a_large_profile_in_pieces_is_put_together() -> None:
    data = saved(colours(), "JPEG", rgb_profile() + bytes(150_000))
    assert data.count(b"ICC_PROFILE\0") == 3
    assert (decode_picture(data) == decode_picture(saved(colours(), "JPEG", rgb_profile()))).all()


def test_a_picture_is_turned_and_coloured() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for how, mode, profile in (("JPEG", "CMYK", ink_profile()), ("JPEG", "RGB", rgb_profile()), ("PNG", "RGB", rgb_profile())):
        upright = decode_picture(saved(colours(mode), how, profile))
        turned = saved(colours(mode).transpose(Image.Transpose.ROTATE_90), how, profile, exif=exif)
        assert np.abs(decode_picture(turned).astype(int) - upright).mean() < 3


def test_a_picture_in_memory_is_coloured_once() -> None:
    image = Image.open(io.BytesIO(saved(colours(), "PNG", rgb_profile())))
    out = io.BytesIO()
    shown = rgb_of(image)
    shown.save(out, "PNG")
    assert (np.asarray(shown) == as_a_viewer(saved(colours(), "PNG", rgb_profile()), "RGB")).all()
    assert (decode_picture(out.getvalue()) == np.asarray(shown)).all()
