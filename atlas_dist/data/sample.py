"""One sample: as a converter describes it, as a tar stores it, as the stream reads it back.

In a tar, a sample of key K is `K.jpg` or `K.png` (pairs: `K.0.*` left, `K.1.*` right; text-only data: no image) and `K.json`:
    {"id": "train/airplane/0000.jpg", "texts": [["This is an image."]], "label": 0}
    {"id": "458752000", "texts": [["What is this?"]], "targets": {"17": 0.9}}
    {"id": "coco/000000139", "texts": [["What is this?"]], "answer": "a living room"}
    {"id": "coco/000000139#2", "texts": [["What colour is the sofa?"]], "answer": "red",
     "earlier": [["What is this?", "a living room"]]}
`texts` has one entry a choice; an entry is one text, or a pair that is tokenised as two segments. Ordinary WebDataset tars are
read too: `K.txt` is the text, `K.cls` the label.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atlas_dist.core.manifest import NO_LABEL
from atlas_dist.data.leftout import writable
from atlas_dist.data.records import decode_text
from atlas_dist.errors import DataError

IMAGE_PROMPT = "This is an image."
"""The text of tasks that have none (docs/method.md, Tasks)."""

PACKED_EXTENSIONS = frozenset({"jpg", "jpeg", "png"})
"""What this package writes, and what every reader of WebDataset tars knows."""
IMAGE_EXTENSIONS = PACKED_EXTENSIONS | {"jfif", "jpe", "webp", "gif", "apng", "bmp", "tif", "tiff", "avif"}
"""What pictures are called; what they are, their content tells."""
_POSITIONS = ("", "0.", "1.")
EXTENSIONS = frozenset(f"{at}{ext}" for at in _POSITIONS for ext in IMAGE_EXTENSIONS) | {"json", "txt", "cls"}
"""Members that are read; anything else in a tar is passed over."""

LABEL_CAP = 1_000_000
"""Labels are numbers of classes, from 0: one beyond is something else (an id)."""

Texts = tuple[tuple[str, ...], ...]
Turns = tuple[tuple[str, str], ...]
"""What was asked and answered before, the oldest first."""


@dataclass(frozen=True, slots=True)
class RawSample:
    """A record of a raw data set. `images` are member names in the source, still unread; the rest is what the tar will say."""

    id: str
    texts: Texts
    images: tuple[str, ...] = ()
    label: int = NO_LABEL
    targets: Mapping[int, float] = field(default_factory=dict)
    """Soft score by answer (`answers` only)."""
    answer: str = ""
    """The text that is the answer (`generate` only)."""
    earlier: Turns = ()
    """Of a conversation (`generate` only)."""

    @property
    def index_label(self) -> int:
        """The class to select by, see `index_label`."""
        return index_label(self.label, self.targets)


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample read back from a tar, its images still compressed."""

    texts: Texts
    images: tuple[memoryview, ...]
    label: int
    targets: Mapping[int, float]
    answer: str = ""
    earlier: Turns = ()


def index_label(label: int, targets: Mapping[int, float]) -> int:
    """The class to select a sample by: its label, or its best-scored answer (the smaller number of equals), or -1."""
    if label != NO_LABEL or not targets:
        return label
    return min(targets, key=lambda answer: (-targets[answer], answer))


def dump_json(raw: RawSample) -> bytes:
    """The `.json` member of a sample, deterministic."""
    body: dict[str, Any] = {"id": raw.id, "texts": raw.texts}
    if raw.answer:
        body["answer"] = raw.answer
        if raw.earlier:
            body["earlier"] = raw.earlier
    elif raw.targets or raw.label == NO_LABEL:
        body["targets"] = {str(answer): raw.targets[answer] for answer in sorted(raw.targets)}
    else:
        body["label"] = raw.label
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def parse_sample(files: Mapping[str, memoryview]) -> Sample:
    """The sample made of the members `{extension: content}` of one key.

    The text is the `texts` of its JSON, else its `.txt`, else the `caption` of its JSON (img2dataset's), else the prompt of
    tasks that have none. A `.cls` goes over a label in the JSON.

    Raises:
        DataError: there is no text and no image, or a text or label cannot be read.
    """
    images = tuple(files[ext] for ext in _image_members(files))
    if not images and not (files.keys() & {"json", "txt"}):
        raise DataError("it has neither an image nor a text")
    texts: Texts = ((IMAGE_PROMPT,),)
    label, targets, answer = NO_LABEL, {}, ""
    earlier: Turns = ()
    try:
        body = _about(files["json"]) if "json" in files else {}
        if "texts" in body:
            texts = _texts(body["texts"])
        elif (raw := files.get("txt")) is not None:
            texts = ((decode_text(bytes(raw), "its .txt").strip(),),)
        elif isinstance(body.get("caption"), str):
            texts = ((body["caption"],),)
        if isinstance(said := body.get("answer"), str) and writable(said) == said:
            answer = said  # half a character is no answer; other kinds of samples may have what they like there
            earlier = _turns(body.get("earlier", []))
            _can_be_written(earlier)
        _can_be_written(texts)
        if (raw := files.get("cls")) is not None:
            label = _label(_whole_number(decode_text(bytes(raw), "its .cls")))
        else:
            label = _label(body.get("label", NO_LABEL))
        targets = {_label(int(answer)): float(score) for answer, score in body.get("targets", {}).items()}
        if not all(math.isfinite(score) for score in targets.values()) or min(targets, default=0) < 0:
            raise ValueError("targets are numbers of answers with finite scores")
    except (ValueError, TypeError, AttributeError, RecursionError, DataError) as error:
        raise DataError(f"its text or label cannot be read ({str(error)[:120]})") from error
    return Sample(texts, images, label, targets, answer, earlier)


def _about(raw: memoryview) -> dict[str, Any]:
    """What a `.json` member says. Raises ValueError: it is no object."""
    if not bytes(raw).strip():
        raise ValueError("its .json is empty")
    try:
        body = json.loads(bytes(raw))
    except ValueError as error:
        raise ValueError(f"its .json is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ValueError(f"its .json is no object but {'a list' if isinstance(body, list) else json.dumps(body)[:20]}")
    return body


def _whole_number(text: str) -> int:
    """Raises ValueError in other words than `int` has."""
    if not text.strip():
        raise ValueError("its .cls is empty; the number of a class is wanted")
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"its .cls is {text.strip()[:40]!r}; the number of a class is wanted, from 0") from error


def _can_be_written(texts: Texts) -> None:
    """Raises ValueError: half a character, which no tokenizer takes."""
    for entry in texts:
        for text in entry:
            text.encode()


def _image_members(files: Mapping[str, memoryview]) -> list[str]:
    """The members that are the sample's pictures. Where one is JPEG or PNG, pictures of other kinds beside it are something else
    (a preview, a mask)."""
    every = sorted(ext for ext in files if ext.rpartition(".")[2] in IMAGE_EXTENSIONS)
    if len(every) < 2:
        return every
    found: list[str] = []
    for at in _POSITIONS:
        here = [ext for ext in every if ext.startswith(at) and ext[len(at) :] in IMAGE_EXTENSIONS]
        found += [ext for ext in here if ext[len(at) :] in PACKED_EXTENSIONS] or here
    return sorted(found)


def _texts(value: Any) -> Texts:
    entries = tuple(tuple(entry) if isinstance(entry, list | tuple) else () for entry in value)
    if not entries or not all(0 < len(e) <= 2 and all(isinstance(t, str) for t in e) for e in entries):
        raise ValueError("texts must be a list of [text] or [text, text]")
    return entries


def _turns(value: Any) -> Turns:
    turns = tuple(tuple(turn) if isinstance(turn, list) else () for turn in value)
    if not all(len(turn) == 2 and all(isinstance(said, str) for said in turn) for turn in turns):
        raise ValueError("earlier turns must be a list of [question, answer]")
    return turns


def _label(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"label {'null' if value is None else repr(value)} is not an integer; the number of a class is wanted")
    if value >= LABEL_CAP:
        raise ValueError(f"label {value} is no number of a class, from 0")
    return value
