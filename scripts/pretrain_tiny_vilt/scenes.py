"""Drawn scenes of coloured shapes: one shape on a lightly tinted ground, a few shapes, or three grey boxes with small shapes.

A scene is plain data; ``sentences.py`` computes from that data what is true of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

from PIL import Image, ImageDraw

SIZE = 64
OVERSAMPLE = 3  # drawn larger and averaged down, for smooth edges

Colour = tuple[int, int, int]
PALETTE: dict[str, Colour] = {
    "red": (220, 30, 30),
    "green": (30, 150, 40),
    "blue": (30, 60, 220),
    "yellow": (240, 220, 30),
    "black": (10, 10, 10),
    "gray": (128, 128, 128),
    "brown": (130, 75, 30),
    "teal": (0, 128, 128),
    "orange": (250, 140, 20),
    "purple": (130, 40, 160),
    "pink": (250, 150, 190),
    "white": (252, 252, 252),
}
BOX_COLOURS = ("black", "blue", "yellow", "red")
SHAPES = ("circle", "square", "rectangle", "triangle", "star", "diamond", "cross", "ellipse")
COMMON_SHAPES = ("circle", "square", "rectangle", "triangle")


@dataclass(frozen=True)
class Item:
    """One shape: centre and half-width in pixels, the box it lies in (0 when there are none).

    ``tall`` is half-height over half-width: above 1 when a wide picture was squeezed into the square.
    """

    shape: str
    colour: str
    x: float
    y: float
    half: float
    box: int = 0
    tall: float = 1.0


@dataclass(frozen=True)
class Scene:
    """What is in a picture. ``boxes`` is 0 for an open ground, else how many grey boxes stand side by side."""

    items: tuple[Item, ...]
    ground: Colour
    boxes: int = 0


def draw_scene(scene: Scene, rng: Random) -> Image.Image:
    """The picture of a scene, RGB 64 x 64. Colours jitter a little; squares and triangles may turn a little."""
    scale = OVERSAMPLE
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), scene.ground)
    pen = ImageDraw.Draw(image)
    for box in range(scene.boxes):
        left, right = box_span(box, scene.boxes)
        pen.rectangle([left * scale, 0, right * scale, SIZE * scale], fill=(211, 211, 211))
    for item in scene.items:
        _draw_item(pen, item, scale, rng, upright=scene.boxes > 0)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def sample_scene(rng: Random) -> Scene:
    """A random scene of one of the three kinds."""
    kind = rng.random()
    if kind < 0.45:
        return _sample_solo(rng)
    if kind < 0.72:
        return _sample_few(rng)
    return _sample_boxes(rng)


# ---- what is in a scene -------------------------------------------------------------------------------------------------


def _sample_solo(rng: Random) -> Scene:
    half = rng.uniform(6, 22)
    x, y = (rng.uniform(half, SIZE - half) for _ in range(2))
    shapes = COMMON_SHAPES if rng.random() < 0.75 else SHAPES
    item = Item(rng.choice(shapes), rng.choice(tuple(PALETTE)), x, y, half)
    return Scene((item,), _light_ground(rng))


def _sample_few(rng: Random) -> Scene:
    wanted = rng.randint(2, 6)
    # Few shapes and colours a scene, so that "all", "same" and counts above one happen often.
    shapes = rng.sample(COMMON_SHAPES if rng.random() < 0.7 else SHAPES, rng.randint(1, 3))
    colours = rng.sample(tuple(PALETTE), rng.randint(1, 3))
    items = _place_apart(wanted, (2, 2, SIZE - 2, SIZE - 2), (4, 10), shapes, colours, 0, rng)
    return Scene(tuple(items), _light_ground(rng) if rng.random() < 0.7 else _any_ground(rng))


def _sample_boxes(rng: Random) -> Scene:
    boxes = 3 if rng.random() < 0.8 else 1
    shapes = rng.sample((*COMMON_SHAPES[:2], "triangle"), rng.randint(1, 3))
    colours = rng.sample(BOX_COLOURS, rng.randint(1, 3))
    tall = rng.choice((1.0, 3.2)) if boxes > 1 else 1.0
    items: list[Item] = []
    for box in range(boxes):
        left, right = box_span(box, boxes)
        # Placed in a square-pixel box, then stretched to the full height.
        area = (left + 0.3, 0.3, right - 0.3, SIZE / tall - 0.3)
        sizes = (2.2, 4.5) if tall == 1 else (1.3, 3.0)
        placed = _place_apart(rng.randint(1, 5), area, sizes, shapes, colours, box, rng)
        items += [replace(item, y=item.y * tall, tall=tall) for item in placed]
    return Scene(tuple(items), (255, 255, 255), boxes)


def _place_apart(
    wanted: int,
    area: tuple[float, float, float, float],
    sizes: tuple[float, float],
    shapes: list[str],
    colours: list[str],
    box: int,
    rng: Random,
) -> list[Item]:
    """Up to ``wanted`` items in the area (left, top, right, bottom) that do not overlap; at least one."""
    left, top, right, bottom = area
    items: list[Item] = []
    for _ in range(wanted * 6):
        half = rng.uniform(*sizes)
        x = rng.uniform(left + half, right - half)
        y = rng.uniform(top + half, bottom - half)
        if rng.random() < 0.25:
            x, y = _push_to_edge(x, y, half, area, rng)
        if all(max(abs(x - o.x), abs(y - o.y)) > half + o.half + 0.5 for o in items):
            items.append(Item(rng.choice(shapes), rng.choice(colours), x, y, half, box))
        if len(items) == wanted:
            break
    return items


def _push_to_edge(x: float, y: float, half: float, area: tuple[float, float, float, float], rng: Random) -> tuple[float, float]:
    left, top, right, bottom = area
    choices = [(left + half, y), (right - half, y), (x, top + half), (x, bottom - half)]
    return rng.choice(choices)


def _light_ground(rng: Random) -> Colour:
    red, green, blue = (rng.randint(225, 255) for _ in range(3))
    return red, green, blue


def _any_ground(rng: Random) -> Colour:
    red, green, blue = (rng.randint(60, 255) for _ in range(3))
    return red, green, blue


def box_span(box: int, boxes: int) -> tuple[float, float]:
    """Left and right edge of a box; the gaps between boxes stay white."""
    gap = 8.0 if boxes > 1 else 0.0
    width = (SIZE - gap * (boxes - 1)) / boxes
    left = box * (width + gap)
    return left, left + width


# ---- drawing ------------------------------------------------------------------------------------------------------------


def _draw_item(pen: ImageDraw.ImageDraw, item: Item, scale: int, rng: Random, *, upright: bool) -> None:
    red, green, blue = (min(255, max(0, part + rng.randint(-18, 18))) for part in PALETTE[item.colour])
    fill = (red, green, blue)
    turn = 0.0 if upright or rng.random() < 0.5 else rng.uniform(-0.5, 0.5)
    outline = _outline(item.shape, rng)
    cos, sin = math.cos(turn), math.sin(turn)
    half = item.half * scale
    points = [
        (item.x * scale + half * (u * cos - v * sin), item.y * scale + half * item.tall * (u * sin + v * cos)) for u, v in outline
    ]
    pen.polygon(points, fill=fill)


def _outline(shape: str, rng: Random) -> list[tuple[float, float]]:
    """Corner points in the unit square around 0."""
    if shape in ("circle", "ellipse"):
        flat = 1.0 if shape == "circle" else rng.uniform(0.4, 0.65)
        ring = [(math.cos(t), flat * math.sin(t)) for t in (2 * math.pi * k / 28 for k in range(28))]
        return ring if rng.random() < 0.5 else [(v, u) for u, v in ring]
    if shape in ("square", "rectangle"):
        flat = 0.9 if shape == "square" else rng.uniform(0.35, 0.7)
        corners = [(-0.9, -flat), (0.9, -flat), (0.9, flat), (-0.9, flat)]
        return corners if rng.random() < 0.5 else [(v, u) for u, v in corners]
    if shape == "triangle":
        return [(rng.uniform(-0.4, 0.4), -0.95), (0.95, 0.8), (-0.95, 0.8)]
    if shape == "diamond":
        return [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)]
    if shape == "star":
        radius = (1.0, 0.42)
        return [(radius[k % 2] * math.sin(k * math.pi / 5), -radius[k % 2] * math.cos(k * math.pi / 5)) for k in range(10)]
    arm = 0.32
    half = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
    return [*half, *((-u, -v) for u, v in half)]
