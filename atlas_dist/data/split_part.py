"""A split that is part of another: where a data set has only train and val, some of val can score what the rest chose."""

from __future__ import annotations

from dataclasses import dataclass, replace

from atlas_dist.data.sample import RawSample
from atlas_dist.data.tasks.base import RawSet, share_of
from atlas_dist.errors import DataError

SEED = 1
"""Of the hash. Not that of converters which carve a validation split out of all records: its shares say nothing about these."""


@dataclass(frozen=True)
class SplitPart:
    """The records of the converter's split `of` whose hash lies in [low, high). Parts that do not overlap share no record, and
    samples with the same first picture stay together. A record's part depends on nothing but that picture, or its id."""

    of: str
    low: float
    high: float

    def taken(self, raw: RawSet) -> RawSet:
        """This part of the whole split. Raises DataError where it is empty."""
        samples = [sample for sample in raw.samples if self._has(_together(sample))]
        if not samples:
            raise DataError(
                f"None of the {len(raw.samples)} records of {self.of!r} falls into the part from {self.low:g} to {self.high:g}.",
                fix="Change raw.test_share.",
            )
        # What cannot be used counts in one part alone, or `pack.max_bad` would hold all of it against each.
        left_out = tuple(each for each in raw.left_out if self._has(each[0]))
        return replace(raw, samples=samples, left_out=left_out, bad=tuple(each for each in raw.bad if self._has(each.record)))

    def _has(self, name: str) -> bool:
        return self.low <= share_of(name, SEED) < self.high


def _together(sample: RawSample) -> str:
    """What samples have in common that stay in one part."""
    return sample.images[0] if sample.images else sample.id
