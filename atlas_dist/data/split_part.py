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
    """The records of the converter's split `of` whose hash lies in [low, high). Parts that do not overlap share no record and no
    picture: samples that show the same one stay together. A record's part depends on nothing but its picture, or its id."""

    of: str
    low: float
    high: float

    def taken(self, raw: RawSet) -> RawSet:
        """This part of the whole split. Raises DataError where it is empty."""
        samples = [sample for sample in raw.samples if self.low <= share_of(_together(sample), SEED) < self.high]
        if not samples:
            raise DataError(
                f"None of the {len(raw.samples)} records of {self.of!r} falls into the part from {self.low:g} to {self.high:g}.",
                fix="Change raw.test_share.",
            )
        return replace(raw, samples=samples)


def _together(sample: RawSample) -> str:
    """What samples have in common that stay in one part."""
    return sample.images[0] if sample.images else sample.id
