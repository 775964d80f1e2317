"""What happens while atlas-dist works, as values. An observer is anything that can be called with them: the console, JSON lines
and a notebook are observers, and so is `events.append`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atlas_dist.app.report import Report
    from atlas_dist.coordinator.service import Snapshot
    from atlas_dist.core.plan import Plan
    from atlas_dist.core.search import Rung
    from atlas_dist.data.pack import PackReport


@dataclass(frozen=True)
class Event:
    """Something that happened. `str(event)` says it in a line or two; "" where there is more to show than a text."""

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class Advice(Event):
    """Something that the user should know."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class RunStarted(Event):
    """A run is about to begin, or to go on."""

    run: str
    rows: int
    """Of a sweep; 0 = it is none."""
    jobs: int
    training_jobs: int
    workers: tuple[int, ...]
    """Of each pool."""
    store: str
    tensorboard: Path

    def __str__(self) -> str:
        rows = f"{self.rows} rows, " if self.rows else ""
        return (
            f"run {self.run}: {rows}{self.jobs} jobs ({self.training_jobs} train) on {' + '.join(map(str, self.workers))} "
            f"workers, store {self.store}\ncurves: tensorboard --logdir {self.tensorboard}"
        )


@dataclass(frozen=True)
class NothingToDo(Event):
    """The ledger says that exactly this run is complete."""

    run: str

    def __str__(self) -> str:
        return f"run {self.run} is complete; nothing to do"


@dataclass(frozen=True)
class WorkersStarting(Event):
    """Ray and the workers come up; from here on there is `Progress`."""

    run: str


@dataclass(frozen=True)
class Progress(Event):
    """A look at a run under way, several times a second: what was decided since the last one, and how far every attempt is."""

    plan: Plan
    snapshot: Snapshot


@dataclass(frozen=True)
class Idle(Event):
    """Nothing is under way any more, whether it ended well or not."""

    run: str


@dataclass(frozen=True)
class ReportWritten(Event):
    """The results are gathered, and on a page unless its folder can't be written (`report.fault`)."""

    report: Report


@dataclass(frozen=True)
class RunEnded(Event):
    """A run that had something to do is complete."""

    run: str
    seconds: float
    """Wall time."""
    stepping: float
    """Seconds of it in training steps."""
    waiting: float
    """Seconds of it waiting for data."""
    setup: float | None
    """Median seconds that a further stage took to set up; None = there was one stage only."""

    def __str__(self) -> str:
        setup = "" if self.setup is None else f", set-up of a further stage {self.setup:.2f} s"
        return (
            f"wall {self.seconds:.0f} s, {self.stepping / self.seconds:.0%} of it training steps, "
            f"{self.waiting / self.seconds:.1%} waiting for data{setup}"
        )


@dataclass(frozen=True)
class SearchStarted(Event):
    """What a search will try."""

    name: str
    task: str
    stage: str
    rungs: tuple[Rung, ...]
    rounds: int
    candidates: tuple[str, ...]

    def __str__(self) -> str:
        ladder = ", then ".join(f"{rung.count} for {rung.share:.0%}" for rung in self.rungs)
        often = f", {self.rounds} rounds" if self.rounds > 1 else ""
        return (
            f"search {self.name}: {self.task} {self.stage}, {ladder} of its length{often}\n"
            f"candidates: {' '.join(self.candidates)}"
        )


@dataclass(frozen=True)
class RoundStarted(Event):
    """A further round of a search; without candidates there is nothing new to try, and the search is over."""

    number: int
    candidates: tuple[str, ...]

    def __str__(self) -> str:
        return f"round {self.number}: {' '.join(self.candidates) or 'nothing new is left to try'}"


@dataclass(frozen=True)
class RungFinished(Event):
    """Which candidates go on to the next rung."""

    number: int
    survivors: Mapping[str, float]
    """Row -> validation score in percent."""

    def __str__(self) -> str:
        return f"rung {self.number}: {', '.join(self.survivors)} go on"


@dataclass(frozen=True)
class Packing(Event):
    """How far a split of a data set is packed. `total` is 0 while its records are being listed."""

    split: str
    done: int
    total: int


@dataclass(frozen=True)
class SplitPacked(Event):
    """A split lies in the store."""

    split: str
    report: PackReport


@dataclass(frozen=True)
class ShardsReady(Event):
    """Every split of the experiment lies in the store."""

    store: str

    def __str__(self) -> str:
        return f"Shards: {self.store}"


Observer = Callable[[Event], None]
