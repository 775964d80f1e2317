"""Which JPEGs need no more than decoding: what simplejpeg may read, because Pillow would give the same pixels."""

from __future__ import annotations

from PIL import Image

from atlas_dist.data.colour import changes_colours

_APP1, _APP2, _APP14, _SOS = 0xE1, 0xE2, 0xEE, 0xDA
_PROFILE = b"ICC_PROFILE\0"
_PROFILE_HEAD = len(_PROFILE) + 2
"""Behind the name stand the number of the piece and how many there are."""
ORIENTATION = 0x0112
"""EXIF's tag of how the picture was held."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def is_plain_jpeg(data: bytes | memoryview) -> bool:
    """Whether nothing before the first scan asks for more than decoding: no EXIF or XMP that turns it, no profile of other
    colours than sRGB's, no Adobe marker (which says what the colours are), 8 bits, one or three components, every marker where
    the one before it says."""
    at, frame = 2, False
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return False
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:
            return False
        if marker == _SOS:
            return frame
        if marker == _APP14 or (marker == _APP1 and _may_turn(bytes(data[at + 4 : at + 2 + length]))):
            return False
        if marker == _APP2 and _has_colours_of_its_own(bytes(data[at + 4 : at + 2 + length])):
            return False
        if marker in _FRAMES:
            if marker > 0xC2 or not _is_plain_frame(bytes(data[at + 4 : at + 19])):
                return False
            frame = True
        at += 2 + length
    return False


def _is_plain_frame(frame: bytes) -> bool:
    """8 bits; one component, or Y, Cb and Cr, the latter whole, halved in width, or halved both ways."""
    if len(frame) < 9 or frame[0] != 8:
        return False
    if frame[5] == 1:
        return frame[7] in (0x11, 0x21, 0x22)
    parts = frame[6:15]
    return frame[5] == 3 and parts[0::3] == b"\1\2\3" and parts[1::3] in (b"\x11\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11")


def _may_turn(segment: bytes) -> bool:
    """Whether an APP1 segment (EXIF, XMP) may say that the picture was held otherwise than upright."""
    if b"tiff:Orientation" in segment:
        return True
    if not segment.startswith(b"Exif\0\0"):
        return False
    try:
        exif = Image.Exif()
        exif.load(segment)
        return bool(exif.get(ORIENTATION, 1) != 1)
    except Exception:
        return True


def _has_colours_of_its_own(segment: bytes) -> bool:
    """Whether an APP2 segment is a colour profile that changes pixels, or one of several pieces (which Pillow puts together)."""
    if not segment.startswith(_PROFILE):
        return False
    whole = segment[len(_PROFILE) : _PROFILE_HEAD] == b"\1\1"
    return not whole or changes_colours(segment[_PROFILE_HEAD:])
