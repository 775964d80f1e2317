"""VCR (Zellers et al. 2019), question answering: film still + question -> one of four answers.

`{train,val}.jsonl`: question and answer_choices are lists of words and of lists of object indices ([0], [0, 2]); objects[] are
their class names. People become neutral names, other things "the COLOUR NAME", the same in question and answers; every index of a
list is named ("Casey and Jessie"), where the released loaders keep the last one only, crash past fifty objects, and read stale
variables.

Pictures: `vcr1images/{img_fn}` (plain), or `drawn_images/bbox/{split}/qa/{annot_id}.jpg` with the boxes drawn in (CLiMB);
packing can draw the boxes of the named objects itself from the metadata (`draw_boxes`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atlas_dist.core.types import TaskKind
from atlas_dist.data.sample import RawSample
from atlas_dist.data.source import Source, open_source
from atlas_dist.data.tasks.base import Converter, Options, RawSet, field, find_file, json_lines, need
from atlas_dist.data.tasks.vcr_boxes import BoxedSource
from atlas_dist.errors import DataError

_NEUTRAL = """
Casey Riley Jessie Jackie Avery Jaime Peyton Kerry Jody Kendall Skyler Frankie Pat Quinn Morgan Finley Harley Robbie
Sidney Tommy Rowan Emery Sage River Dakota Blair Charlie Drew Hayden Jordan Kai Lane Marley Noel Oakley Parker Reese
Shiloh Taylor Winter Alex Bailey Cameron Devon Elliot Flynn Gray Hollis Indigo Jules
"""
NAMES = tuple(_NEUTRAL.split())
"""Neutral names by object index; past the end they repeat with a number ("Casey 2"), so that no two people share one."""


class VcrOptions(Options):
    """Where the pictures lie, and how boxes are shown."""

    images: str = "vcr1images/{img_fn}"
    """Name of a picture by the record's fields and `split`; CLiMB: `drawn_images/bbox/{split}/qa/{annot_id}.jpg`."""
    draw_boxes: bool = False
    """Draw the boxes of the objects that question or answers name, from `metadata_fn` beside the picture."""
    thing: str = "the gray {name}"
    """How an object that is no person is named."""


def convert(path: Path | None, split: str, options: VcrOptions) -> RawSet:
    """List a split; the K = 4 texts of a record are pairs (question, answer)."""
    source: Source = open_source(need(path, "vcr"))
    name = find_file(source, f"{split}.jsonl", f"annotation/{split}.jsonl", f"VCR/{split}.jsonl", f"vcr/annotation/{split}.jsonl")
    boxes: dict[str, tuple[str, str, tuple[int, ...]]] = {}
    samples: list[RawSample] = []
    for number, record in json_lines(source, name):
        where = f"{name}, line {number}"
        objects = [str(o) for o in field(record, "objects", where)]
        answers, question = field(record, "answer_choices", where), field(record, "question", where)
        label = field(record, "answer_label", where)
        if len(answers) != 4 or label not in range(4):
            raise DataError(f"{where}: {len(answers)} answers, label {label!r}; expected 4 and 0 … 3.")
        try:
            picture = options.images.format(
                split=split, **{k: record[k] for k in ("img_fn", "annot_id", "img_id") if k in record}
            )
        except KeyError as error:
            raise DataError(f"{where}: the picture's name needs the field {error}.") from error
        asked = words(question, objects, options.thing, where)
        texts = tuple((asked, words(answer, objects, options.thing, where)) for answer in answers)
        identifier = str(record.get("annot_id", f"{split}-{number - 1}"))
        if options.draw_boxes:
            named = tuple(sorted({i for tokens in (question, *answers) for t in tokens for i in _indices(t)}))
            boxes[identifier] = (picture, f"vcr1images/{field(record, 'metadata_fn', where)}", named)
            picture = identifier
        samples.append(RawSample(identifier, texts, (picture,), label))
    return RawSet(TaskKind.CHOICE, 1, tuple("ABCD"), samples, BoxedSource(source, boxes) if options.draw_boxes else source)


def words(tokens: list[Any], objects: list[str], thing: str, where: str) -> str:
    """A tokenised sentence as text: object references become names.

    >>> words(["Does", [2], "feel", "comfortable", "?"], ["person"] * 3, "the gray {name}", "")
    'Does Jessie feel comfortable?'
    """
    out: list[str] = []
    for token in tokens:
        indices = _indices(token)
        if any(not 0 <= i < len(objects) for i in indices):
            raise DataError(f"{where}: object {indices} of {len(objects)}.")
        text = " and ".join(_called(i, objects[i], thing) for i in indices) if indices else str(token)
        if out and (text in _CLOSING or text.startswith("'") or text == "n't"):
            out[-1] += text
        else:
            out.append(text)
    return " ".join(out)


def _indices(token: Any) -> tuple[int, ...]:
    """The objects that a token refers to; some files have a bare number for one."""
    if isinstance(token, bool) or not isinstance(token, int | list):
        return ()
    return tuple(int(i) for i in token) if isinstance(token, list) else (token,)


def _called(index: int, kind: str, thing: str) -> str:
    if kind != "person":
        return thing.format(name=kind)
    round_, place = divmod(index, len(NAMES))
    return NAMES[place] if round_ == 0 else f"{NAMES[place]} {round_ + 1}"


_CLOSING = frozenset(".,;:!?")

VCR = Converter("vcr", VcrOptions, convert, ("train", "val"), "VCR, question -> answer: still + question, four answers")
