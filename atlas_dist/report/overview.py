"""The first screen of a report, as figures and one picture: what was learnt, how well, compared with what, what was forgotten,
and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import fmean

from atlas_dist.core.metrics import Spread, spread
from atlas_dist.core.pace import duration
from atlas_dist.core.types import View
from atlas_dist.report.facts import OWN, Cell, RunFacts, SequenceFacts
from atlas_dist.report.forecast import Compared
from atlas_dist.report.growth import FORMS, bank_sizes, selections
from atlas_dist.report.heatmap import thinned
from atlas_dist.report.later import written_sentence
from atlas_dist.report.measures import FORGETTING, SequenceMeasures
from atlas_dist.report.outlook import Pace
from atlas_dist.report.plot import PlotRow, plot

_ROWS = 24
"""Rows of the picture."""


@dataclass
class TaskScores:
    """One task in one method: its scores in percent over the method's orders and seeds."""

    chance: float
    transfer: bool
    own: list[float] = field(default_factory=list)
    """At the end of the sequence, in the view that counts for the method; so far, while the sequence is not complete."""
    later: list[float] = field(default_factory=list)
    """The same in the latest view, of tasks that later ones followed."""
    reference: list[float] = field(default_factory=list)
    """Learnt by itself, or, of a transfer, from the pretrained backbone."""


@dataclass(frozen=True)
class MethodScores:
    """One method with its settings, over all its orders and seeds."""

    name: str
    sequences: tuple[SequenceFacts, ...]
    measured: tuple[SequenceMeasures, ...]
    tasks: Mapping[str, TaskScores]

    @property
    def average(self) -> Spread | None:
        """Average score of the upstream tasks; None before anything is scored."""
        if self.measured and len(self.measured) == len(self.sequences):
            return spread([fmean(each.finals.values()) for each in self.measured])
        known = [fmean(task.own) for task in self.upstream.values() if task.own]
        return spread([fmean(known)]) if known else None

    @property
    def upstream(self) -> dict[str, TaskScores]:
        """Those that are learnt in turn."""
        return {name: task for name, task in self.tasks.items() if not task.transfer}

    @property
    def chance(self) -> float:
        """Of the same average."""
        return _mean(task.chance for task in self.upstream.values())

    @property
    def alone(self) -> float | None:
        """Mean of the upstream tasks learnt by themselves; None where one is missing."""
        known = [fmean(task.reference) for task in self.upstream.values() if task.reference]
        return fmean(known) if known and len(known) == len(self.upstream) else None

    @property
    def forgotten(self) -> Spread | None:
        """T_F in the view that counts; None before a sequence is complete."""
        values = [each.values[FORGETTING] for each in self.measured if FORGETTING in each.values]
        return spread(values) if values else None

    @property
    def forgotten_later(self) -> float | None:
        """T_F read with the newest queries and every adapter; None where that is the same or not known."""
        reads = {each.name: each.reads for each in self.measured}
        differing = [s.summary() for s in self.sequences if _differs(s, reads.get(s.name, View.TASK))]
        known = [told["forgetting T_F, latest view"] for told in differing if told]
        return fmean(known) if known else None


def method_scores(facts: RunFacts, measured: Sequence[SequenceMeasures] = ()) -> list[MethodScores]:
    """Every method of a run, in the order of its plan.

    A sequence without measures goes by its method's name and has no references.
    """
    known = {each.name: each for each in measured}
    by_name: dict[str, list[SequenceFacts]] = {}
    for sequence in facts.sequences:
        found = known.get(sequence.name)
        by_name.setdefault(found.variant if found else sequence.method, []).append(sequence)
    return [_method(name, mine, known) for name, mine in by_name.items()]


def _method(name: str, sequences: Sequence[SequenceFacts], known: Mapping[str, SequenceMeasures]) -> MethodScores:
    tasks: dict[str, TaskScores] = {}
    for sequence in sequences:
        found = known.get(sequence.name)
        for j, task in enumerate(sequence.upstream):
            mine = tasks.setdefault(task.task, TaskScores(task.random_score, transfer=False))
            _note(mine.own, found.finals.get(task.task) if found else _newest(sequence, j))
            _note(mine.reference, found.alone.get(task.task) if found else None)
            if j + 1 < len(sequence.upstream) and _differs(sequence, found.reads if found else View.TASK):
                _note(mine.later, sequence.matrix["latest"][-1][j])
        for task in sequence.downstream:
            mine = tasks.setdefault(task.task, TaskScores(task.random_score, transfer=True))
            _note(mine.own, sequence.transfers.get(task.task))
            _note(mine.reference, found.pretrained.get(task.task) if found else None)
    return MethodScores(name, tuple(sequences), tuple(known[s.name] for s in sequences if s.name in known), tasks)


def _differs(sequence: SequenceFacts, reads: View) -> bool:
    """Whether the latest view is something else than the one that counts."""
    return reads is View.TASK and sequence.matrix["latest"] != sequence.matrix["task"]


def _note(values: list[float], value: Cell) -> None:
    if value is not None:
        values.append(value)


def _newest(sequence: SequenceFacts, j: int) -> Cell:
    """The last score of task j that is known."""
    column = [row[j] for row in sequence.matrix["task"][j:]]
    return next((cell for cell in reversed(column) if cell is not None), None)


def answer(facts: RunFacts, measured: Sequence[SequenceMeasures] = ()) -> str:
    """The figures and the picture as HTML."""
    methods = method_scores(facts, measured)
    if not methods:
        return ""
    shown = [*_results(facts, methods), *_growth(methods[0]), *_costs(facts)]
    figures = "".join(
        f'<div class="{kind}"><dt>{escape(what)}</dt><dd><b>{escape(value)}</b><small>{escape(told)}</small></dd></div>'
        for what, value, told, kind in shown
    )
    picture = _of_methods(methods) if len(methods) > 1 else _of_tasks(methods[0])
    return f'<section id="answer" aria-label="Result"><dl class="answer">{figures}</dl>{picture}</section>'


Figure = tuple[str, str, str, str]
"""(what, value, what else there is to know about it, "good" | "bad" | "")"""


def _results(facts: RunFacts, methods: Sequence[MethodScores]) -> list[Figure]:
    """What was learnt, how well, and what was forgotten."""
    best = max(methods, key=lambda method: method.average.mean if method.average else -1.0)
    counts = Counter(len(method.sequences) for method in methods)
    sequences = facts.sequences[0]
    learnt = max(sum(bool(task.stages) for task in s.upstream) for s in facts.sequences)
    of = "" if learnt == len(sequences.upstream) else f" of {len(sequences.upstream)}"
    parts = [methods[0].name if len(methods) == 1 else f"by each of {len(methods)} methods"]
    parts += [_count(max(counts), "order or seed", "orders and seeds")] if max(counts) > 1 else []
    parts += [f"and {_count(len(sequences.downstream), 'transfer', 'transfers')}"] if sequences.downstream else []
    found: list[Figure] = [("Learnt", f"{learnt}{of} {'task' if learnt == 1 and not of else 'tasks'}", ", ".join(parts), "")]
    if best.average is not None:
        told = [f"{best.name} is the best of {len(methods)}"] if len(methods) > 1 else []
        told += [f"chance is {best.chance:.1f} %"] + (
            [f"each task learnt alone {best.alone:.1f} %"] if best.alone is not None else []
        )
        found.append(("Average score, %", f"{best.average}", "; ".join(told), ""))
    return [*found, _forgotten(methods)]


def _forgotten(methods: Sequence[MethodScores]) -> Figure:
    changed = [name for method in methods for s in method.sequences for name in s.changed_predictions()]
    if changed:
        return "Forgotten", "changed", f"the predictions of {', '.join(dict.fromkeys(changed))} did not stay equal", "bad"
    known = [(method.name, method.forgotten) for method in methods if method.forgotten is not None]
    if not known:
        return "Forgotten", "–", "not known before every task is scored", ""
    if len(known) > 1:
        ordered = sorted(known, key=lambda pair: pair[1].mean)
        (least, low), (most, high) = ordered[0], ordered[-1]
        told = f"of what was above chance: least {least}, most {most}"
        return "Forgotten, %", f"{low.mean:.1f} to {high.mean:.1f}", told, ""
    method = next(method for method in methods if method.forgotten is not None)
    if all(len(s.upstream) == 1 for s in method.sequences):
        return "Forgotten", "–", "one task: nothing was learnt after it", ""
    kept = all(s.complete for s in method.sequences) and all(each.reads is View.TASK for each in method.measured)
    told = "every old prediction is bitwise equal" if kept else "of what was above chance"
    later = method.forgotten_later
    told += f"; read with the newest queries and every adapter {later:.1f} %" if later is not None else ""
    return "Forgotten, %", f"{known[0][1]}", told, "good" if kept else ""


def _growth(method: MethodScores) -> list[Figure]:
    """The bank, and what experience did for the tasks; of the first method, where it has these."""
    found: list[Figure] = []
    sizes = [bank_sizes(sequence) for sequence in method.sequences]
    if any(sizes):
        most = max(filter(None, sizes), key=len)
        size = max((each.bank_bytes for each in method.measured), default=0)
        declined = len(most) - most[-1]
        told = f"for {_count(len(most), 'task', 'tasks')}" + (f", {_bytes(size)}" if size else "")
        told += f"; {declined} added none, for it did not pay" if declined else ""
        found.append(("Bank", _count(most[-1], "adapter", "adapters"), told, ""))
    chosen = [each for s in method.sequences for each in selections((*s.upstream, *s.downstream)) if len(each.scores) > 1]
    if chosen:
        helped = sum(each.form != OWN for each in chosen)
        counted = Counter(each.told for each in chosen)
        order = [FORMS[form] for form in FORMS if counted[FORMS[form]]]
        told = ", ".join(f"{name} {counted[name]}" for name in (*order, *(n for n in counted if n not in order)))
        found.append(("Experience used", f"{helped} of {len(chosen)}", f"tasks; committed: {told}", "good" if helped else ""))
    return found


def _costs(facts: RunFacts) -> list[Figure]:
    """Time and cost, and what was foreseen of them."""
    found: list[Figure] = []
    spent = _seconds(facts.compared)
    if facts.timeline.seconds or spent:
        came = f"all jobs {duration(spent)}, {_pace(_whole(facts.compared, 'seconds_foreseen'), _spoken)}" if spent else ""
        found.append(("Time", duration(facts.timeline.seconds or spent), came, ""))
    hours = sum(row.worker_hours for row in facts.compared)
    if hours:
        foreseen, price = _whole(facts.compared, "worker_hours_foreseen"), facts.worker_hour
        if price:
            told = _pace(foreseen, lambda value: f"{value * price:,.2f}")
            found.append(("Cost", f"{hours * price:,.2f}", f"{hours:.3g} worker hours; {told}", ""))
        else:
            found.append(("Worker hours", f"{hours:.2g}", _pace(foreseen, lambda value: f"{value:.2g}"), ""))
    return found


def _seconds(compared: Iterable[Compared]) -> float:
    return sum(row.seconds for row in compared)


def _whole(compared: Sequence[Compared], what: str) -> Pace | None:
    """The sum over the kinds of jobs; None where one of them was not foreseen."""
    paces: list[Pace | None] = [getattr(row, what) for row in compared]
    known = [pace for pace in paces if pace is not None]
    return (sum(p[0] for p in known), sum(p[1] for p in known)) if known and len(known) == len(paces) else None


def _spoken(seconds: float) -> str:
    return duration(seconds)


def _pace(pace: Pace | None, form: Callable[[float], str]) -> str:
    if pace is None:
        return "no forecast: nothing had finished to go by"
    low, high = map(form, pace)
    return f"forecast {low if low == high else f'{low} to {high}'}"


# ------------------------------------------------------------------------------------------------------------------ the picture


def _of_tasks(method: MethodScores) -> str:
    names = [list(method.tasks)[n] for n in thinned(len(method.tasks), _ROWS)]
    rows = [_task_row(name, method.tasks[name]) for name in names]
    runs = len(method.sequences)
    notes = [f"Mean over {runs} orders and seeds ± standard deviation."] if runs > 1 else []
    notes += (
        ["An outline is a transfer: it starts from the final bank and stays out of it."] if any(r.hollow for r in rows) else []
    )
    notes += [f"{len(rows)} of {len(method.tasks)} tasks are drawn."] if len(rows) < len(method.tasks) else []
    notes += list(dict.fromkeys(sequence.scored_on for sequence in method.sequences))
    notes += [told for sequence in method.sequences if (told := written_sentence(sequence.token_f1))]
    return plot("Score of each task at the end, in %", rows, 0, 100, " ".join(notes))


def _task_row(name: str, task: TaskScores) -> PlotRow:
    found = spread(task.own) if task.own else None
    marks = {"chance": task.chance}
    more = [f"chance {task.chance:.1f}"]
    for kind, what, values in (
        ("reference", "pretrained alone" if task.transfer else "alone", task.reference),
        ("later", "latest view", task.later),
    ):
        if values:
            marks[kind] = fmean(values)
            more.append(f"{what} {marks[kind]:.1f}")
    return score_row(name, found, marks, " · ".join(more), hollow=task.transfer)


def _of_methods(methods: Sequence[MethodScores]) -> str:
    shown = [methods[n] for n in thinned(len(methods), _ROWS)]
    rows = []
    for method in shown:
        marks = {"chance": method.chance} | ({"reference": method.alone} if method.alone is not None else {})
        lost = method.forgotten
        rows.append(score_row(method.name, method.average, marks, "" if lost is None else f"forgotten {lost} %"))
    note = "" if max(len(m.sequences) for m in shown) == 1 else "Mean over orders and seeds ± standard deviation."
    return plot("Average score of each method at the end, in %", rows, 0, 100, note)


def score_row(name: str, found: Spread | None, marks: Mapping[str, float], more: str, *, hollow: bool = False) -> PlotRow:
    """A score in percent with its deviation, where it is one of several."""
    several = found is not None and found.count > 1
    return PlotRow(
        name=name,
        value=found.mean if found else None,
        text=str(found) if found else "not scored yet",
        low=found.mean - found.deviation if found and several else None,
        high=found.mean + found.deviation if found and several else None,
        marks=marks,
        more=more,
        hollow=hollow,
    )


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return fmean(listed) if listed else 0.0


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
