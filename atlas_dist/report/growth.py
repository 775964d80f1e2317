"""What each task added: the form that it committed, with how much certainty, and how bank and representation grew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Any

from atlas_dist.core.results import MEAN, NOTHING
from atlas_dist.report.facts import OWN, SequenceFacts, TaskFacts
from atlas_dist.report.html import folded, table
from atlas_dist.report.matrices import rank_matrix
from atlas_dist.report.plot import PlotRow, plot
from atlas_dist.report.svg import line_chart, round_top

FORMS = {"experience": "experience alone", OWN: "own adapter alone", "both": "experience and own adapter"}
"""What a task may commit, as a result calls it and as a reader does."""


@dataclass(frozen=True)
class Selection:
    """Which form a task committed, as its result has it (core/results.py, SelectResult), in part where it is old or damaged."""

    task: str
    form: str
    scores: Mapping[str, float]
    """form -> score in percent on the samples that decided."""
    samples: int
    gain: Mapping[str, float] | None
    """What the best form with an adapter of its own has over experience alone: `mean`, `low`, `high` (the middle 95 %) in points,
    `confidence` = how sure it is that this is worth an adapter; None where there was no experience."""
    grew: bool
    started: str = ""
    """Where its coefficients started, in words; "" where that is not known."""

    @property
    def told(self) -> str:
        """How it is called on the page."""
        return FORMS.get(self.form, self.form)

    def certainty(self) -> str:
        """What its own adapter adds, and how sure that is; "" where it was not measured."""
        if self.gain is None or "mean" not in self.gain:
            return ""
        told = f"an own adapter adds {self.gain['mean']:+.1f} points"
        if {"low", "high"} <= self.gain.keys():
            told += f" ({self.gain['low']:+.1f} to {self.gain['high']:+.1f})"
        return told + (f", worth it with {_percent(self.gain['confidence'])} confidence" if "confidence" in self.gain else "")

    def experience(self) -> str:
        """What reading earlier adapters is worth to it; "" where it reads none or learnt no adapter to compare with."""
        if self.form == OWN or not {self.form, OWN} <= self.scores.keys():
            return ""
        return f"{self.scores[self.form] - self.scores[OWN]:+.1f} points over its own adapter alone"


def selections(tasks: Sequence[TaskFacts]) -> list[Selection]:
    """Of every task whose result says; [] where no method chose."""
    names = {stage.key: task.task for task in tasks for stage in task.stages}
    return [_selection(task, task.selection, names) for task in tasks if task.selection]


_STARTS = {"": "", MEAN: "coefficients began as the mean of all", NOTHING: "coefficients began at 0"}


def _selection(task: TaskFacts, told: Mapping[str, Any], names: Mapping[str, str]) -> Selection:
    scores = {str(form): float(score) for form, score in (told.get("scores") or {}).items() if score is not None}
    gain = {str(k): float(v) for k, v in (told.get("gain") or {}).items() if v is not None}
    start = "" if told.get("form") == OWN else str(told.get("started_from", ""))
    began = (
        _STARTS.get(start, f"coefficients began as those of {names.get(start, start[:12])}"),
        f"stage two began with {told['composition']}" if told.get("composition") else "",
    )
    started = "; ".join(filter(None, began))
    return Selection(task.task, str(told.get("form", "")), scores, int(told.get("samples", 0)), gain or None, task.grew, started)


def bank_sizes(sequence: SequenceFacts) -> list[int]:
    """Adapters in the bank after each upstream task that is learnt; [] where the method leaves none."""
    learnt = [task for task in sequence.upstream if task.stages]
    if not any(task.grew for task in learnt):
        return []
    return [sum(task.grew for task in learnt[: i + 1]) for i in range(len(learnt))]


def selection_section(sequence: SequenceFacts) -> str:
    """What each task committed, by how much, and how sure that is; "" where nothing was chosen."""
    found = selections((*sequence.upstream, *sequence.downstream))
    if not found:
        return ""
    beside = {task.task for task in sequence.downstream}
    rows = [
        PlotRow(
            name=each.task,
            value=each.gain.get("mean") if each.gain else None,
            text=each.told,
            low=each.gain.get("low") if each.gain else None,
            high=each.gain.get("high") if each.gain else None,
            more="; ".join(filter(None, (each.experience(), each.certainty(), each.started, _growth(each, each.task in beside)))),
        )
        for each in found
    ]
    ends = [abs(value) for row in rows for value in (row.value, row.low, row.high) if value is not None]
    most = round_top(max(ends, default=0.0) or 1.0)
    title = "What each task committed, and the points that an adapter of its own adds to experience alone"
    note = (
        "Committed is the best, on the samples that decide, of experience alone, its own adapter alone, and both; "
        "experience alone where an own adapter does not pay."
    )
    drawn = plot(title, rows, -most, most, note, unit="", spread="the middle 95 % of a bootstrap")
    return drawn + folded("As a table", _table(found))


def _growth(each: Selection, beside: bool) -> str:
    """Downstream tasks stay out of the bank whatever they commit."""
    return "" if beside or each.grew else "no adapter added: the bank does not grow"


def _table(found: Sequence[Selection]) -> str:
    forms = list(dict.fromkeys([*FORMS, *(form for each in found for form in each.scores)]))
    heads = ("committed", *(FORMS.get(form, form) for form in forms), "gain", "low", "high", "confidence", "samples")
    lines = []
    for each in found:
        gain = each.gain or {}
        cells = [escape(each.told), *(_number(each.scores.get(form)) for form in forms)]
        cells += [_number(gain.get(what)) for what in ("mean", "low", "high")]
        cells += [_percent(gain["confidence"]) if "confidence" in gain else "–", f"{each.samples:,}" if each.samples else "–"]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(each.task)}</th>{row}</tr>')
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return table("Score of each form in %, gain in points", head, "".join(lines))


def growth_section(sequence: SequenceFacts) -> str:
    """Bank and representation over the tasks learnt; "" where neither grows nor is measured."""
    charts = "".join((_bank_chart(sequence), _rank_chart(sequence)))
    ranks = rank_matrix(sequence)
    if not charts and not ranks:
        return ""
    return f"<h3>Growth</h3>{f'<div class=figures>{charts}</div>' if charts else ''}{ranks}"


def _bank_chart(sequence: SequenceFacts) -> str:
    sizes = bank_sizes(sequence)
    if not sizes:
        return ""
    count = len(sizes)
    lines = {"adapters in the bank": [(0.0, 0.0), *((i, float(size)) for i, size in enumerate(sizes, 1))]}
    if sizes[-1] < count:
        lines["one for each task"] = [(0.0, 0.0), (float(count), float(count))]
    title = f"Adapters in the bank by number of tasks learnt: {sizes[-1]} after {count}"
    refused = [task.task for task in sequence.upstream if task.stages and not task.grew]
    told = f"{sizes[-1]} adapters for {count} tasks" + (f"; without one of their own: {', '.join(refused)}" if refused else "")
    chart = line_chart(lines, title, round_top(float(max(count, 4))), "{} tasks")
    return f"<figure>{chart}<figcaption>{escape(told)}.</figcaption></figure>"


def _rank_chart(sequence: SequenceFacts) -> str:
    """Mean over the tasks so far, and the first task's: does what is learnt later take directions away from it?"""
    means, first = [], []
    for i, row in enumerate(sequence.effective_rank, 1):
        known = [cell for cell in row if cell is not None]
        if known and len(known) == len(row):
            means.append((float(i), fmean(known)))
        if row and row[0] is not None:
            first.append((float(i), row[0]))
    if not means:
        return ""
    lines = {"mean so far": means, "the first task": first}
    title = f"Effective rank by number of tasks learnt: {means[0][1]:.2f} to {means[-1][1]:.2f}"
    chart = line_chart(lines, title, round_top(max(value for _, value in (*means, *first))), "{} tasks")
    change = f"{means[0][1]:.1f} at first, {means[-1][1]:.1f} at the end"
    told = f"Effective rank of what the heads read (how many directions it uses): {change}."
    return f"<figure>{chart}<figcaption>{escape(told)}</figcaption></figure>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _percent(share: float) -> str:
    """0.95 or 95 -> 95 %."""
    return f"{100 * share if share <= 1 else share:.0f} %"
