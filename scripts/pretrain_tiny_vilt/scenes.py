"""Drawn scenes of coloured shapes, with sentences that are true or false of them and questions with answers.

Three kinds: one shape on a lightly tinted ground; a few shapes; three grey boxes with small shapes. A scene is plain data, its
sentences are computed from that data, and truth is balanced: each sentence is asked to come out true or false.
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
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
ANSWERS = (*PALETTE, *SHAPES, "yes", "no", *NUMBERS)


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


@dataclass(frozen=True)
class Sentence:
    """Text about a scene: a claim (``truth`` set) or a question (``answer`` set, one of ANSWERS)."""

    text: str
    truth: bool | None = None
    answer: str | None = None


def draw_scene(scene: Scene, rng: Random) -> Image.Image:
    """The picture of a scene, RGB 64 x 64. Colours jitter a little; squares and triangles may turn a little."""
    scale = OVERSAMPLE
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), scene.ground)
    pen = ImageDraw.Draw(image)
    for box in range(scene.boxes):
        left, right = _box_span(box, scene.boxes)
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


def sentences_of(scene: Scene, count: int, rng: Random) -> list[Sentence]:
    """``count`` sentences about the scene, about half of them questions, half of the claims true."""
    writers = _WRITERS["boxes" if scene.boxes else "solo" if len(scene.items) == 1 else "few"]
    sentences: list[Sentence] = []
    while len(sentences) < count:
        sentence = rng.choice(writers)(scene, rng)
        if sentence is not None:
            sentences.append(_spoken_as_claim(sentence, rng))
    return sentences


def _spoken_as_claim(sentence: Sentence, rng: Random) -> Sentence:
    """Sometimes turn a question into a claim, "question answer", right or wrong."""
    if sentence.answer is None or rng.random() < 0.7:
        return sentence
    truth = rng.random() < 0.5
    answer = sentence.answer if truth else _rival(sentence.answer, rng)
    return Sentence(f"{sentence.text} {answer}", truth=truth)


def _rival(answer: str, rng: Random) -> str:
    """Another answer of the same kind."""
    for group in (tuple(PALETTE), SHAPES, ("yes", "no"), NUMBERS):
        if answer in group:
            return rng.choice([other for other in group if other != answer])
    raise ValueError(f"{answer!r} is no answer")


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
        left, right = _box_span(box, boxes)
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


def _box_span(box: int, boxes: int) -> tuple[float, float]:
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


# ---- sentences: each writer returns one, or None when it has nothing to say about this scene ---------------------------------


@dataclass(frozen=True)
class Kind:
    """A description such as "red circle": either part may be left open."""

    colour: str | None
    shape: str | None

    def fits(self, item: Item) -> bool:
        return self.colour in (None, item.colour) and self.shape in (None, item.shape)

    def spoken(self, *, plural: bool = False) -> str:
        noun = (self.shape or "shape") + ("s" if plural else "")
        noun = "crosses" if noun == "crosss" else noun
        return f"{self.colour} {noun}" if self.colour else noun


def _kind_near(scene: Scene, rng: Random) -> Kind:
    """A description that often, not always, fits something in the scene."""
    item = rng.choice(scene.items)
    other = rng.choice(scene.items)
    colours = (item.colour, item.colour, other.colour, rng.choice(tuple(PALETTE)))
    shapes = (item.shape, item.shape, other.shape, rng.choice(COMMON_SHAPES))
    form = rng.random()
    colour = rng.choice(colours) if form < 0.7 else None
    return Kind(colour, rng.choice(shapes) if form > 0.35 else None)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeio" else f"a {noun}"


def _balanced_kind(scene: Scene, rng: Random, *, present: bool) -> Kind | None:
    for _ in range(8):
        kind = _kind_near(scene, rng)
        if any(map(kind.fits, scene.items)) == present:
            return kind
    return None


def _exists(scene: Scene, rng: Random) -> Sentence | None:
    present = rng.random() < 0.5
    kind = _balanced_kind(scene, rng, present=present)
    if kind is None:
        return None
    noun = _article(kind.spoken())
    yes_no = "yes" if present else "no"
    no_yes = "no" if present else "yes"
    where = rng.choice(("", " in the picture", " in the image", " here"))
    return rng.choice(
        (
            Sentence(f"there is {noun}{where}.", truth=present),
            Sentence(f"there is no {kind.spoken()}{where}.", truth=not present),
            Sentence(f"is there {noun}{where}?", answer=yes_no),
            Sentence(f"does the picture have {noun}?", answer=yes_no),
            Sentence(f"can you see {noun}{where}?", answer=yes_no),
            Sentence(f"is {noun} missing{where}?", answer=no_yes),
            Sentence(f"is there not {noun}{where}?", answer=no_yes),
        )
    )


def _name_shape(scene: Scene, rng: Random) -> Sentence | None:
    item = rng.choice(scene.items)
    kind = Kind(item.colour, None)
    if len({other.shape for other in scene.items if kind.fits(other)}) > 1:
        return None
    noun = kind.spoken() if len(scene.items) > 1 else rng.choice((kind.spoken(), "shape", "object"))
    forms = (f"what shape is the {noun}?", f"which shape does the {noun} have?", "what shape is this?", "what is this?")
    return Sentence(rng.choice(forms[:2] if len(scene.items) > 1 else forms), answer=item.shape)


def _name_colour(scene: Scene, rng: Random) -> Sentence | None:
    item = rng.choice(scene.items)
    kind = Kind(None, item.shape)
    if len({other.colour for other in scene.items if kind.fits(other)}) > 1:
        return None
    noun = kind.spoken() if len(scene.items) > 1 else rng.choice((kind.spoken(), "shape", "object"))
    forms = (f"what color is the {noun}?", f"which color does the {noun} have?", f"what is the color of the {noun}?")
    return Sentence(rng.choice(forms), answer=item.colour)


def _describe(scene: Scene, rng: Random) -> Sentence | None:
    truth = rng.random() < 0.5
    item = rng.choice(scene.items)
    kind = Kind(item.colour, item.shape)
    if not truth:
        found = _balanced_kind(scene, rng, present=False)
        if found is None:
            return None
        kind = Kind(found.colour or item.colour, found.shape or item.shape)
        if any(map(kind.fits, scene.items)):
            return None
    noun = _article(kind.spoken())
    return Sentence(rng.choice((f"a picture of {noun}.", f"this is {noun}.", f"{noun} on a plain ground.")), truth=truth)


def _count(scene: Scene, rng: Random) -> Sentence | None:
    kind = _kind_near(scene, rng)
    count = sum(map(kind.fits, scene.items))
    if count >= len(NUMBERS):
        return None
    if rng.random() < 0.45:
        noun = kind.spoken(plural=True)
        return Sentence(rng.choice((f"how many {noun} are there?", f"what is the number of {noun}?")), answer=NUMBERS[count])
    truth = rng.random() < 0.5
    return _count_claim(count, kind, truth, "", rng)


def _count_claim(count: int, kind: Kind, truth: bool, where: str, rng: Random) -> Sentence | None:
    """ "exactly", "at least" or "at most" so many, right or wrong."""
    word, holds = rng.choice(
        (("exactly", lambda n: count == n), ("at least", lambda n: count >= n), ("at most", lambda n: count <= n))
    )
    fitting = [n for n in range(1, 6) if holds(n) == truth and abs(n - count) <= 2]
    if not fitting:
        return None
    number = rng.choice(fitting)
    spelled = NUMBERS[number] if rng.random() < 0.5 else str(number)
    word = "" if word == "exactly" and rng.random() < 0.4 else f"{word} "
    verb = "is" if number == 1 else "are"
    return Sentence(f"there {verb} {word}{spelled} {kind.spoken(plural=number > 1)}{where}.", truth=truth)


_RELATIONS = {
    "left of": lambda a, b: a.x < b.x - 4,
    "right of": lambda a, b: a.x > b.x + 4,
    "above": lambda a, b: a.y < b.y - 4,
    "below": lambda a, b: a.y > b.y + 4,
}


def _relation(scene: Scene, rng: Random) -> Sentence | None:
    first, second = rng.choice(scene.items), rng.choice(scene.items)
    one, two = Kind(first.colour, first.shape), Kind(second.colour, second.shape)
    if one == two or sum(map(one.fits, scene.items)) > 1 or sum(map(two.fits, scene.items)) > 1:
        return None
    name, holds = rng.choice(tuple(_RELATIONS.items()))
    truth = bool(holds(first, second))
    text = f"the {one.spoken()} is {name} the {two.spoken()}."
    if rng.random() < 0.3:
        return Sentence(f"is {text[:-1]}?", answer="yes" if truth else "no")
    return Sentence(text, truth=truth)


def _all_same(scene: Scene, rng: Random) -> Sentence | None:
    item = rng.choice(scene.items)
    by_colour = rng.random() < 0.5
    truth = len({other.colour if by_colour else other.shape for other in scene.items}) == 1
    if not truth and rng.random() < 0.5:
        return None
    same = "color" if by_colour else "shape"
    what = item.colour if by_colour else Kind(None, item.shape).spoken(plural=True)
    return Sentence(rng.choice((f"all shapes are {what}.", f"all objects have the same {same}.")), truth=truth)


def _box_count(scene: Scene, rng: Random) -> Sentence | None:
    """There is a box with so many of a kind."""
    kind = _kind_near(scene, rng)
    counts = [sum(kind.fits(i) for i in scene.items if i.box == box) for box in range(scene.boxes)]
    truth = rng.random() < 0.5
    numbers = [n for n in range(1, 6) if (n in counts) == truth]
    if not numbers:
        return None
    number = rng.choice(numbers)
    spelled = NUMBERS[number] if rng.random() < 0.5 else str(number)
    text = f"there is a box with {rng.choice(('', 'exactly '))}{spelled} {kind.spoken(plural=number > 1)}."
    return Sentence(text, truth=truth)


def _box_every(scene: Scene, rng: Random) -> Sentence | None:
    """Every box, or only one box, has some kind."""
    kind = _kind_near(scene, rng)
    having = len({item.box for item in scene.items if kind.fits(item)})
    noun = _article(kind.spoken())
    claims = {
        f"each box has {noun}.": having == scene.boxes,
        f"there is {noun} in every box.": having == scene.boxes,
        f"there is only one box with {noun}.": having == 1,
        f"there is a box without {noun}.": having < scene.boxes,
    }
    wanted = rng.random() < 0.5
    fitting = [text for text, holds in claims.items() if holds == wanted]
    return Sentence(rng.choice(fitting), truth=wanted) if fitting and scene.boxes > 1 else None


def _touches_edge(scene: Scene, rng: Random) -> Sentence | None:
    kind = _kind_near(scene, rng)
    if not any(map(kind.fits, scene.items)):
        return None
    truth = any(kind.fits(item) and _at_edge(item, scene) for item in scene.items)
    noun = _article(kind.spoken())
    edge = rng.choice(("the wall", "the edge", "the edge of a box"))
    return Sentence(rng.choice((f"there is {noun} touching {edge}.", f"{noun} touches {edge}.")), truth=truth)


def _at_edge(item: Item, scene: Scene) -> bool:
    left, right = _box_span(item.box, scene.boxes)
    beside = min(item.x - left, right - item.x) < item.half + 0.8
    return beside or min(item.y, SIZE - item.y) < (item.half + 0.8) * item.tall


_WRITERS = {
    "solo": (_exists, _exists, _exists, _name_shape, _name_shape, _name_colour, _name_colour, _describe),
    "few": (_exists, _describe, _name_shape, _name_colour, _count, _count, _count, _relation, _relation, _all_same),
    "boxes": (_box_count, _box_count, _box_every, _count, _exists, _touches_edge, _all_same),
}
