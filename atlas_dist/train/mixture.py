"""Which task's samples each step of a stage takes: one stream for most methods, several where earlier tasks are rehearsed or
all are learnt at once.

Every step draws from one task. The tasks' steps are spread evenly over the stage by arithmetic, so the order depends neither on
chance nor on the number of workers, and a resumed stage goes on in the middle of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from atlas_dist.data.batch import RankBatch

if TYPE_CHECKING:  # a step can be measured where no stream can be read
    from atlas_dist.data.stream import Stream

OWN = -1
"""The task that the job belongs to; auxiliary tasks are counted from 0."""


@dataclass(frozen=True)
class Source:
    """One task's training samples and how many steps take them."""

    auxiliary: int
    stream: Stream
    steps: int


class Mixture:
    """The steps of a stage. `sources`: at least one, each with a stream of its own."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self._turns = interleaved([source.steps for source in sources])

    def __len__(self) -> int:
        return len(self._turns)

    def steps(self, start: int) -> Iterator[tuple[int, RankBatch]]:
        """(auxiliary task, batch) of every step from `start` to the end."""
        done = [self._turns[:start].count(number) for number in range(len(self.sources))]
        batches = [iter(source.stream.epochs_from(first, source.steps)) for source, first in zip(self.sources, done, strict=True)]
        for number in islice(self._turns, start, None):
            yield self.sources[number].auxiliary, next(batches[number])


def interleaved(counts: Sequence[int]) -> list[int]:
    """Which source each step takes: source i comes `counts[i]` times, evenly spread.

    >>> interleaved([4, 2])
    [0, 1, 0, 0, 1, 0]
    """
    turns = sorted(((turn + 0.5) / count, source) for source, count in enumerate(counts) for turn in range(count))
    return [source for _, source in turns]
