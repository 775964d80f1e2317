"""When what happened: the attempts of a run as spans of time, from its ledger. Clocks are the writers'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from atlas_dist.core.ledger import Entry
from atlas_dist.core.records import Abandon, Adopt, Cancel, Commit, Dispatch, Elect, Fail, Finish, Halt, Pause, Quarantine, Resume
from atlas_dist.core.results import Metrics


@dataclass(frozen=True)
class Span:
    """One attempt: seconds since the run began, how it ended (`commit`, `fail`, or "" = it has not), and why."""

    label: str
    job: str
    attempt: str
    begin: float
    end: float
    outcome: str
    reason: str = ""
    nodes: tuple[str, ...] = ()
    """Hosts that it ran on, as a committed one noted them; () where that is not known."""


@dataclass(frozen=True)
class Moment:
    """Something that happened to the run as a whole: elections, pauses, quarantines."""

    at: float
    what: str
    reason: str


@dataclass(frozen=True)
class Timeline:
    """Spans in the order of their dispatch, moments in ledger order; both in seconds since `began` (seconds since 1970)."""

    began: float = 0.0
    seconds: float = 0.0
    spans: tuple[Span, ...] = ()
    moments: tuple[Moment, ...] = ()

    @property
    def faults(self) -> int:
        """Attempts that failed."""
        return sum(span.outcome == "fail" for span in self.spans)


def timeline(entries: Iterable[Entry], labels: Mapping[str, str]) -> Timeline:
    """The timeline of a ledger; `labels` say what jobs are called."""
    listed = list(entries)
    if not listed:
        return Timeline()
    began = listed[0].at
    last = max(entry.at for entry in listed) - began
    open_spans: dict[str, tuple[str, float]] = {}
    order: list[str] = []
    ended: dict[str, Span] = {}
    moments: list[Moment] = []

    def close(job: str, attempt: str, at: float, outcome: str, reason: str = "", nodes: Iterable[str] = ()) -> None:
        begin = open_spans.pop(attempt, (job, at))[1]
        ended[attempt] = Span(labels.get(job, job[:12]), job, attempt, begin, at, outcome, reason, tuple(nodes))

    for entry in listed:
        at, record = round(entry.at - began, 3), entry.record
        match record:
            case Dispatch():
                open_spans[record.attempt] = (record.job, at)
                order.append(record.attempt)
            case Commit():
                close(record.job, record.attempt, at, "commit", nodes=Metrics.from_json(record.metrics).nodes)
            case Fail():
                close(record.job, record.attempt, at, "fail", f"{record.kind.value}: {record.reason}")
            case Adopt():
                moments.append(Moment(at, f"adopted {labels.get(record.job, record.job[:12])}", f"from run {record.run}"))
            case Elect() | Halt() | Pause() | Resume() | Cancel() | Finish() | Quarantine():
                moments.append(Moment(at, type(record).__name__.lower(), record.reason))
            case Abandon() | _:
                pass
    for attempt, (job, begin) in open_spans.items():
        ended[attempt] = Span(labels.get(job, job[:12]), job, attempt, begin, last, "")
    return Timeline(began, last, tuple(ended[a] for a in order if a in ended), tuple(moments))
