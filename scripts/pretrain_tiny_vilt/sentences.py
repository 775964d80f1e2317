"""Sentences about drawn scenes: claims that are true or false, and questions with their answers.

Truth is balanced: a writer first decides whether its sentence shall be true, then looks for words that make it so.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from scripts.pretrain_tiny_vilt.scenes import COMMON_SHAPES, PALETTE, SHAPES, SIZE, Item, Scene, box_span

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
ANSWERS = (*PALETTE, *SHAPES, "yes", "no", *NUMBERS)


@dataclass(frozen=True)
class Sentence:
    """Text about a scene: a claim (``truth`` set) or a question (``answer`` set, one of ANSWERS)."""

    text: str
    truth: bool | None = None
    answer: str | None = None


def sentences_of(scene: Scene, count: int, rng: Random) -> list[Sentence]:
    """``count`` sentences about the scene, a good third of them questions, half of the claims true."""
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


# ---- writers: each returns a sentence, or None when it has nothing to say about this scene -------------------------------


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
    left, right = box_span(item.box, scene.boxes)
    beside = min(item.x - left, right - item.x) < item.half + 0.8
    return beside or min(item.y, SIZE - item.y) < (item.half + 0.8) * item.tall


_WRITERS = {
    "solo": (_exists, _exists, _exists, _name_shape, _name_shape, _name_colour, _name_colour, _describe),
    "few": (_exists, _describe, _name_shape, _name_colour, _count, _count, _count, _relation, _relation, _all_same),
    "boxes": (_box_count, _box_count, _box_every, _count, _exists, _touches_edge, _all_same),
}
