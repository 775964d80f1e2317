"""Characters as a pen would draw them: from fonts, and invented.

Font glyphs are thinned to a skeleton, so that a serif face and a bold face both become strokes of a pen; width, wobble and
slant come later, in the training loop (``augment.py``). Invented characters are a few random curves each: they add as many
classes as one likes, whose differences are small, as between the letters of a script.
"""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from random import Random

import matplotlib
import numpy as np
import torch
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIZE = 64
FONT_FILES = (
    "DejaVuSans.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSans-Bold.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralItalic.ttf",
)
SCRIPTS = frozenset(
    (
        *("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN", "ARABIC", "HEBREW", "CANADIAN", "TIFINAGH", "NKO", "LAO"),
        *("LISU", "OGHAM", "OLD", "COPTIC", "CHEROKEE", "DIGIT", "ARABIC-INDIC", "APL", "RUNIC"),
    )
)


def font_alphabet() -> list[str]:
    """Every letter and digit of SCRIPTS that the first font or two others hold, without accented compositions."""
    maps = [set(TTFont(_font_path(name)).getBestCmap()) for name in FONT_FILES[:3]]
    known = sorted(set().union(*maps))
    return [chr(code) for code in known if _is_plain_letter(chr(code))]


def glyph_caption(character: str) -> str:
    """The Unicode name in lower case, such as "greek small letter alpha"."""
    return unicodedata.name(character).lower().replace("-", " ")


def render_font_glyphs(alphabet: list[str]) -> tuple[Tensor, Tensor]:
    """All faces of all characters, thinned: uint8 skeletons [N, 64, 64] in {0, 1} and class numbers [N]."""
    pictures: list[np.ndarray] = []
    labels: list[int] = []
    for name in FONT_FILES:
        covered = TTFont(_font_path(name)).getBestCmap()
        font = ImageFont.truetype(_font_path(name), 52)
        for label, character in enumerate(alphabet):
            picture = _render(character, font) if ord(character) in covered else None
            if picture is not None:
                pictures.append(picture)
                labels.append(label)
    filled = torch.from_numpy(np.stack(pictures))
    return thin(filled), torch.tensor(labels)


def invent_glyphs(classes: int, each: int, seed: int) -> tuple[Tensor, Tensor]:
    """Invented characters: ``classes`` of them, ``each`` drawn with a shaky hand. Same layout as ``render_font_glyphs``."""
    rng = random.Random(seed)
    pictures: list[np.ndarray] = []
    for _ in range(classes):
        strokes = [_invent_stroke(rng) for _ in range(rng.choice((1, 1, 2, 2, 2, 3)))]
        pictures += [_draw_strokes(strokes, rng) for _ in range(each)]
    return torch.from_numpy(np.stack(pictures)), torch.arange(classes).repeat_interleave(each)


def thin(filled: Tensor, rounds: int = 12) -> Tensor:
    """Skeletons of filled shapes, [N, H, W] in {0, 1}: the thinning of Zhang and Suen (1984), all pictures at once.

    A round peels the south-east, then the north-west border. Strokes up to about two ``rounds`` wide become one pixel wide.
    """
    shapes = filled.bool()
    for _ in range(rounds):
        for corner in (0, 1):
            shapes = shapes & ~_removable(shapes, corner)
    return shapes.to(torch.uint8)


def _removable(shapes: Tensor, corner: int) -> Tensor:
    padded = torch.nn.functional.pad(shapes, (1, 1, 1, 1))
    height, width = shapes.shape[-2:]

    def neighbour(down: int, right: int) -> Tensor:
        return padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    # Clockwise from north, as in the paper.
    ring = [neighbour(*step) for step in ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))]
    north, _, east, _, south, _, west, _ = ring
    count = torch.stack(ring).sum(0, dtype=torch.uint8)
    onsets = torch.stack([~here & after for here, after in zip(ring, ring[1:] + ring[:1], strict=True)])
    keeps_connected = onsets.sum(0, dtype=torch.uint8) == 1
    if corner == 0:
        on_border = ~(north & east & south) & ~(east & south & west)
    else:
        on_border = ~(north & east & west) & ~(north & south & west)
    return shapes & (count >= 2) & (count <= 6) & keeps_connected & on_border


def _font_path(name: str) -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


def _is_plain_letter(character: str) -> bool:
    name = unicodedata.name(character, "")
    return (
        unicodedata.category(character) in ("Lu", "Ll", "Lo", "Nd")
        and not unicodedata.decomposition(character)
        and name.split(" ")[0] in SCRIPTS
        and " WITH " not in name
    )


def _render(character: str, font: ImageFont.FreeTypeFont) -> np.ndarray | None:
    """The character, centred and scaled to fit 44 of 64 pixels; None when it has no ink."""
    canvas = Image.new("L", (128, 128), 0)
    ImageDraw.Draw(canvas).text((34, 24), character, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        return None
    ink = canvas.crop(box)
    scale = 44 / max(ink.size)
    size = (max(1, round(ink.width * scale)), max(1, round(ink.height * scale)))
    picture = Image.new("L", (SIZE, SIZE), 0)
    picture.paste(ink.resize(size, Image.Resampling.BILINEAR), ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2))
    return (np.asarray(picture) > 110).astype(np.uint8)


Stroke = list[tuple[float, float]]


def _invent_stroke(rng: Random) -> Stroke:
    """Control points of a Bezier curve on a coarse grid; two for a line, four for a bend or a hook, six for a loop."""
    grid = (12, 22, 32, 42, 52)
    return [(rng.choice(grid), rng.choice(grid)) for _ in range(rng.choice((2, 3, 4, 4, 6)))]


def _draw_strokes(strokes: list[Stroke], rng: Random) -> np.ndarray:
    picture = Image.new("L", (SIZE, SIZE), 0)
    pen = ImageDraw.Draw(picture)
    for stroke in strokes:
        shaky = np.array([(x + rng.gauss(0, 2.0), y + rng.gauss(0, 2.0)) for x, y in stroke])
        pen.line([tuple(point) for point in _bezier(shaky)], fill=1, width=1)
    return np.asarray(picture, dtype=np.uint8)


def _bezier(control: np.ndarray, samples: int = 18) -> np.ndarray:
    """Points [samples, 2] on the Bezier curve, by de Casteljau's repeated interpolation."""
    along = np.linspace(0, 1, samples)[:, None, None]
    points = np.broadcast_to(control, (samples, *control.shape))
    while points.shape[1] > 1:
        points = points[:, :-1] * (1 - along) + points[:, 1:] * along
    return points[:, 0]
