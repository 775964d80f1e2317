"""Toy tasks, drawn here: small enough for unit tests, learnable enough to see learning. Nothing of them comes from outside.

`shape` (single): a picture of one coloured shape -> its shape and colour.   `truth` (single): picture + sentence -> false / true.
`kin` (choice): text only, which of K words is the colour (or shape) named?   `pair`: two pictures + sentence -> false / true.
`ask` (answers): picture + question -> soft scores over words.   `say` (generate): picture + question -> a word or two.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Literal

from PIL import Image, ImageDraw
from pydantic import Field

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import IMAGE_PROMPT, RawSample
from atlas_dist.data.tasks.base import Converter, Options, RawSet
from atlas_dist.errors import DataError

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square", "triangle")
WORDS = (*COLOURS, *SHAPES)
VERDICTS = ("false", "true")


class ToyOptions(Options):
    """Which toy, how many samples, how large the pictures are."""

    task: Literal["shape", "truth", "kin", "pair", "ask", "say"] = "shape"
    samples: int = Field(default=256, ge=1)
    seed: int = 0
    side: int = Field(default=32, ge=8, le=1024)
    choices: int = Field(default=3, ge=2, le=3)
    """K of `kin`."""
    image_format: Literal["png", "jpg"] = "png"


class ToySource:
    """Pictures drawn on request: `red-circle-17.png` is a red circle at the place that 17 picks."""

    def __init__(self, side: int) -> None:
        self._side = side

    def read(self, name: str) -> bytes:
        colour, _, rest = name.partition("-")
        shape, _, rest = rest.partition("-")
        variant, _, ext = rest.partition(".")
        if colour not in COLOURS or shape not in SHAPES or ext not in ("png", "jpg"):
            raise DataError(f"there is no toy picture {name!r}")
        draw = Random(blake2b(variant.encode()).digest())
        side = self._side
        image = Image.new("RGB", (side, side), tuple(draw.randrange(200, 256) for _ in range(3)))
        pen = ImageDraw.Draw(image)
        size = draw.uniform(0.35, 0.6) * side
        left, top = draw.uniform(0, side - size), draw.uniform(0, side - size)
        box = (left, top, left + size, top + size)
        if shape == "circle":
            pen.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            pen.rectangle(box, fill=COLOURS[colour])
        else:
            pen.polygon([(left + size / 2, top), (left, top + size), (left + size, top + size)], fill=COLOURS[colour])
        out = io.BytesIO()
        image.save(out, "PNG" if ext == "png" else "JPEG", **({} if ext == "png" else {"quality": 92}))
        return out.getvalue()

    def has(self, name: str) -> bool:
        return name.count("-") == 2

    def names(self, under: str = "") -> Iterator[str]:
        yield from ()

    def stamp(self, name: str) -> str:
        return ""


def convert(path: Path | None, split: str, options: ToyOptions) -> RawSet:
    """Draw a split; splits differ by seed. `path` is not used."""
    draw = Random(f"{options.seed}/{split}/{options.task}")
    make, kind, images, classes = _TASKS[options.task]
    if options.task == "kin":
        classes = tuple("ABC"[: options.choices])
    samples = [make(draw, f"{split}-{n}", options) for n in range(options.samples)]
    return RawSet(kind, images, classes, samples, ToySource(options.side))


def _picture(draw: Random, options: ToyOptions) -> tuple[str, str, str]:
    colour, shape = draw.choice(list(COLOURS)), draw.choice(SHAPES)
    return colour, shape, f"{colour}-{shape}-{draw.randrange(1 << 30)}.{options.image_format}"


def _shape(draw: Random, name: str, options: ToyOptions) -> RawSample:
    colour, shape, image = _picture(draw, options)
    return RawSample(name, ((IMAGE_PROMPT,),), (image,), list(COLOURS).index(colour) * len(SHAPES) + SHAPES.index(shape))


def _truth(draw: Random, name: str, options: ToyOptions) -> RawSample:
    colour, shape, image = _picture(draw, options)
    true = draw.random() < 0.5
    said = colour if true else draw.choice([c for c in COLOURS if c != colour])
    return RawSample(name, ((f"there is a {said} {shape}",),), (image,), int(true))


def _kin(draw: Random, name: str, options: ToyOptions) -> RawSample:
    family, others = draw.choice([("colour", SHAPES), ("shape", tuple(COLOURS))])
    right = draw.choice(list(COLOURS) if family == "colour" else SHAPES)
    words = [right, *draw.sample(others, options.choices - 1)]
    draw.shuffle(words)
    return RawSample(name, tuple((f"which word is a {family}", w) for w in words), (), words.index(right))


def _pair(draw: Random, name: str, options: ToyOptions) -> RawSample:
    """Half of the sentences are true; a false one is wrong about one picture or about both."""
    said, true = draw.choice(list(COLOURS)), draw.random() < 0.5
    others = [c for c in COLOURS if c != said]
    colours = [said, said] if true else [draw.choice(others), draw.choice(list(COLOURS))]
    draw.shuffle(colours)
    images = tuple(f"{c}-{draw.choice(SHAPES)}-{draw.randrange(1 << 30)}.{options.image_format}" for c in colours)
    return RawSample(name, ((f"both pictures show something {said}",),), images, int(true))


def _ask(draw: Random, name: str, options: ToyOptions) -> RawSample:
    colour, shape, image = _picture(draw, options)
    about = draw.choice(("colour", "shape"))
    answer, doubt = (colour, shape) if about == "colour" else (shape, colour)
    return RawSample(name, ((f"what {about} is it",),), (image,), targets={WORDS.index(answer): 1.0, WORDS.index(doubt): 0.3})


def _say(draw: Random, name: str, options: ToyOptions) -> RawSample:
    colour, shape, image = _picture(draw, options)
    question, answer = draw.choice((("What colour is it?", colour), ("What is it?", f"a {colour} {shape}")))
    return RawSample(name, ((question,),), (image,), answer=answer)


_TASKS = {
    "shape": (_shape, TaskKind.SINGLE, 1, tuple(f"{c} {s}" for c in COLOURS for s in SHAPES)),
    "truth": (_truth, TaskKind.SINGLE, 1, VERDICTS),
    "kin": (_kin, TaskKind.CHOICE, 0, ()),
    "pair": (_pair, TaskKind.PAIR, 2, VERDICTS),
    "ask": (_ask, TaskKind.ANSWERS, 1, WORDS),
    "say": (_say, TaskKind.GENERATE, 1, ()),
}

TOY = Converter("toy", ToyOptions, convert, (), "drawn shapes: shape, truth, kin, pair, ask, say (any split name)")
