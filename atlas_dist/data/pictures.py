"""Whether the pictures that a split was packed from are still what they were.

A recipe names records and files, not pixels: pictures that were mended in place leave it as it is. So a pack keeps a stamp of
all its files (size and time, or a zip's CRC: cheap to compare) and eight bytes of each picture's hash (to tell a copied
folder, with new times, from changed pictures).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from atlas_dist.core.keys import digest_of
from atlas_dist.data.leftout import shown
from atlas_dist.data.sample import RawSample
from atlas_dist.data.source import Source
from atlas_dist.errors import DataError, MissingObject
from atlas_dist.store.objects import ObjectStore

MARK_BYTES = 8
_FILE = "_pack/pictures.json"
_CAP = 256 << 20


@dataclass(frozen=True)
class PictureMarks:
    """What a pack saw. `marks`: MARK_BYTES a record, in packed order, which `seed` shuffles."""

    recipe: str
    stamps: str
    marks: bytes
    seed: int

    def changed(self, source: Source, samples: Sequence[RawSample]) -> list[str]:
        """Ids of the records whose pictures hold other bytes now. Reads every picture.

        Args:
            samples: in packed order.
        """
        then = [self.marks[at : at + MARK_BYTES] for at in range(0, len(self.marks), MARK_BYTES)]
        return [shown(s.id) for s, mark in zip(samples, then, strict=False) if _mark_now(source, s) != mark]


def mark_of(*contents: bytes) -> bytes:
    """MARK_BYTES that stand for the pictures of a record; of a single empty one for a record that could not be read."""
    return blake2b(b"".join(blake2b(c, digest_size=16).digest() for c in contents), digest_size=MARK_BYTES).digest()


def stamps_of(source: Source, samples: Iterable[RawSample]) -> str:
    """One digest of the files' stamps; "" where none ever changes."""
    stamps = [source.stamp(name) for sample in samples for name in sample.images]
    return digest_of(stamps) if any(stamps) else ""


def write_marks(store: ObjectStore, prefix: str, marks: PictureMarks) -> None:
    """Keep them beside the split."""
    body = {
        "recipe": marks.recipe,
        "stamps": marks.stamps,
        "marks": base64.b64encode(marks.marks).decode(),
        "seed": marks.seed,
    }
    if marks.stamps:
        store.put(prefix + _FILE, json.dumps(body).encode())


def read_marks(store: ObjectStore, prefix: str) -> PictureMarks | None:
    """Those of the split; None where there are none that can be read."""
    try:
        body = json.loads(store.get(prefix + _FILE, limit=_CAP))
        return PictureMarks(str(body["recipe"]), str(body["stamps"]), base64.b64decode(body["marks"]), int(body["seed"]))
    except (MissingObject, ValueError, KeyError, TypeError):
        return None


def _mark_now(source: Source, sample: RawSample) -> bytes:
    try:
        return mark_of(*(source.read(name) for name in sample.images))
    except DataError:
        return mark_of(b"")
