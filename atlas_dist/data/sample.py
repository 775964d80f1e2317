"""One sample: as a converter describes it, as a tar stores it, as the stream reads it back.

In a tar, a sample of key K is `K.jpg` or `K.png` (pairs: `K.0.*` left, `K.1.*` right; text-only data: no image) and `K.json`:
    {"id": "train/airplane/0000.jpg", "texts": [["This is an image."]], "label": 0}
    {"id": "458752000", "texts": [["What is this?"]], "targets": {"17": 0.9}}
`texts` has one entry a choice; an entry is one text, or a pair that is tokenised as two segments. Ordinary WebDataset tars are
read too: `K.txt` is the text, `K.cls` the label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atlas_dist.core.manifest import NO_LABEL
from atlas_dist.errors import DataError

IMAGE_PROMPT = "This is an image."
"""The text of tasks that have none (docs/method.md, Tasks)."""

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png"})
EXTENSIONS = IMAGE_EXTENSIONS | {f"{i}.{ext}" for i in range(2) for ext in IMAGE_EXTENSIONS} | {"json", "txt", "cls"}
"""Members that are read; anything else in a tar is passed over."""

Texts = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class RawSample:
    """A record of a raw data set. `images` are member names in the source, still unread; the rest is what the tar will say."""

    id: str
    texts: Texts
    images: tuple[str, ...] = ()
    label: int = NO_LABEL
    targets: Mapping[int, float] = field(default_factory=dict)
    """Soft score by answer (`answers` only)."""

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


def index_label(label: int, targets: Mapping[int, float]) -> int:
    """The class to select a sample by: its label, or its best-scored answer (the smaller number of equals), or -1."""
    if label != NO_LABEL or not targets:
        return label
    return min(targets, key=lambda answer: (-targets[answer], answer))


def dump_json(raw: RawSample) -> bytes:
    """The `.json` member of a sample, deterministic."""
    body: dict[str, Any] = {"id": raw.id, "texts": raw.texts}
    if raw.targets or raw.label == NO_LABEL:
        body["targets"] = {str(answer): raw.targets[answer] for answer in sorted(raw.targets)}
    else:
        body["label"] = raw.label
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def parse_sample(files: Mapping[str, memoryview]) -> Sample:
    """The sample made of the members `{extension: content}` of one key.

    Raises:
        DataError: there is no text and no image, or the JSON is not what this module writes.
    """
    images = tuple(files[ext] for ext in sorted(files) if ext.rpartition(".")[2] in IMAGE_EXTENSIONS)
    texts: Texts = ((IMAGE_PROMPT,),)
    label, targets = NO_LABEL, {}
    try:
        if (raw := files.get("json")) is not None:
            body = json.loads(bytes(raw))
            texts = _texts(body.get("texts", texts))
            label = _label(body.get("label", NO_LABEL))
            targets = {int(answer): float(score) for answer, score in body.get("targets", {}).items()}
        elif (raw := files.get("txt")) is not None:
            texts = ((bytes(raw).decode("utf-8").strip(),),)
        if (raw := files.get("cls")) is not None:
            label = int(bytes(raw))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"its text or label cannot be read ({str(error)[:120]})") from error
    if not images and not (files.keys() & {"json", "txt"}):
        raise DataError("it has neither an image nor a text")
    return Sample(texts, images, label, targets)


def _texts(value: Any) -> Texts:
    entries = tuple(tuple(entry) if isinstance(entry, list | tuple) else () for entry in value)
    if not entries or not all(0 < len(e) <= 2 and all(isinstance(t, str) for t in e) for e in entries):
        raise ValueError("texts must be a list of [text] or [text, text]")
    return entries


def _label(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"label {value!r} is not an integer")
    return value
