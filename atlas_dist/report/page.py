"""One self-contained HTML page of a run: no request leaves it, it opens from a folder, on a phone and in the dark.

First what was learnt and what it cost (overview.py), then a section a sequence, then what any run has (sections.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from atlas_dist.report.facts import RunFacts, SequenceFacts, StageFacts, TaskFacts
from atlas_dist.report.files import write_tables
from atlas_dist.report.growth import growth_section, selection_section
from atlas_dist.report.html import document, folded, in_columns, table, wide
from atlas_dist.report.masked import masked_sentence
from atlas_dist.report.matrices import alpha_matrices, score_matrices, similarity_matrix, without_matrix
from atlas_dist.report.measures import SequenceMeasures
from atlas_dist.report.overview import answer
from atlas_dist.report.sections import environment_section, jobs_section, timeline_section
from atlas_dist.report.speed import speed_section
from atlas_dist.report.svg import heat_cell, line_chart, lineage

PAGE = "index.html"
_NAMED = 16
"""Tasks up to which a sentence names them."""
_HINT = "Point at a coloured cell of a map, or go to it with Tab and the arrow keys, to read it in words."
_ARCS = 16
"""Tasks up to which the arcs between them can be followed; the map of α has them all."""


def write_report(facts: RunFacts, folder: Path, notes: Sequence[str] = (), measured: Sequence[SequenceMeasures] = ()) -> Path:
    """Write `index.html`, and beside it the same as JSON, CSV and TensorBoard events; return the page's path. Raises OSError.

    `notes`: sentences about the run as a whole. `measured`: of its complete sequences; without them no reference is shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(facts, folder)
    page = folder / PAGE
    page.write_text(render(facts, notes, measured), encoding="utf-8")
    return page


def render(facts: RunFacts, notes: Sequence[str] = (), measured: Sequence[SequenceMeasures] = ()) -> str:
    """The page as a string."""
    links = {f"s{number}": sequence.name for number, sequence in enumerate(facts.sequences)}
    links |= {part: part for part in ("jobs", "timeline", "environment")}
    body = "".join(_sequence(s, number) for number, s in enumerate(facts.sequences))
    rest = "." if facts.committed == facts.total else "; the rest is missing here."
    standing = f"{facts.committed} of {facts.total} jobs are done{rest}"
    lede = " ".join(map(escape, filter(None, (_learnt(facts), standing, *notes))))
    body += jobs_section(facts) + timeline_section(facts) + environment_section(facts)
    return document(f"atlas-dist run {facts.run}", lede, links, body, answer(facts, measured))


def _learnt(facts: RunFacts) -> str:
    """What the run was, in a sentence."""
    orders = {tuple(task.task for task in sequence.upstream): sequence for sequence in facts.sequences}
    if not orders:
        return ""
    tasks, first = next(iter(orders.items()))
    how = f"{', '.join(sorted(tasks))} in {len(orders)} orders" if len(orders) > 1 else " → ".join(tasks)
    beside = f"; then, from the final bank, {', '.join(task.task for task in first.downstream)}" if first.downstream else ""
    return f"Tasks learnt in turn on one backbone: {how if len(tasks) <= _NAMED else len(tasks)}{beside}."


def _sequence(sequence: SequenceFacts, number: int) -> str:
    names = [t.task for t in sequence.upstream]
    tasks = (*sequence.upstream, *sequence.downstream)
    parts = (
        f'<section id="s{number}"><h2>{escape(sequence.name)}: {escape(" → ".join(names))}</h2>',
        f"<p>Method {escape(sequence.method)}, seed {sequence.seed}.</p>",
        _verdict(sequence),
        _masked(sequence),
        f'<p class="soft hint">{_HINT}</p>',
        score_matrices(sequence),
        folded("Measures", _summary(sequence)),
        _transfers(sequence),
        selection_section(sequence),
        _experience(sequence),
        growth_section(sequence),
        folded("Curves of each task", "".join(map(_curves, tasks))),
        speed_section(tasks),
    )
    return "".join(parts) + "</section>"


def _experience(sequence: SequenceFacts) -> str:
    """What the tasks draw on, and whether that is worth anything to them."""
    maps = in_columns((alpha_matrices(sequence), without_matrix(sequence), similarity_matrix(sequence)))
    shown = f"<h3>What each task reads of the others</h3>{maps}" if maps else ""
    return shown + folded("Who reads whom", _lineage(sequence))


def _masked(sequence: SequenceFacts) -> str:
    told = [masked_sentence(t.task, [s.result for s in t.stages]) for t in (*sequence.upstream, *sequence.downstream)]
    return "".join(f'<p class="bad">{escape(sentence)}</p>' for sentence in told if sentence)


def _verdict(sequence: SequenceFacts) -> str:
    changed = sequence.changed_predictions()
    if changed:
        named = escape(", ".join(changed))
        return f'<p class="bad" role="alert">The task-view predictions of {named} changed. This must not happen.</p>'
    if sequence.complete and len(sequence.upstream) > 1:
        told = f"Task view: every old task’s predictions are bitwise equal after every later task{sequence.proved_on}."
        return f'<p class="good">{escape(told)}</p>'
    return ""


def _summary(sequence: SequenceFacts) -> str:
    rows = [f"<dt>{escape(k)}</dt><dd>{v:.2f}</dd>" for k, v in sequence.summary().items()]
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def _transfers(sequence: SequenceFacts) -> str:
    """Downstream tasks: what each stage brought, and the score on the final bank."""
    rows = []
    for task in sequence.downstream:
        by_stage = {stage.stage: stage.score for stage in task.stages}
        cells = [by_stage.get("stage1"), by_stage.get("stage2"), sequence.transfers.get(task.task)]
        rows.append(
            f'<tr><th scope="row">{escape(task.task)}</th>{"".join(heat_cell(c, 100.0, ".1f") for c in cells)}'
            f"<td>{task.random_score:.1f}</td></tr>"
        )
    head = "".join(f'<th scope="col">{h}</th>' for h in ("stage 1", "stage 2", "scored", "by chance"))
    return (
        table("Transfer: tasks that start from the final bank and stay out of it (score in %)", head, "".join(rows))
        if rows
        else ""
    )


def _lineage(sequence: SequenceFacts) -> str:
    """Which task reads whose adapter. A task's own adapter is not an arc."""
    tasks = [*sequence.upstream, *sequence.downstream]
    place = {task.task: number for number, task in enumerate(tasks)}
    edges = {}
    for task in tasks:
        reuse = task.reuse()
        for name in task.sees:
            if name != task.task and name in place and task.stages:
                edges[place[name], place[task.task]] = abs(reuse.get(name, 1.0))
    if not edges or len(tasks) > _ARCS:
        return ""
    beside = frozenset(range(len(sequence.upstream), len(tasks)))
    title = "; ".join(f"{tasks[b].task} reads {tasks[a].task}" for a, b in edges)
    drawn = lineage([t.task for t in tasks], edges, beside, f"Who reads whose adapter: {title}")
    note = "The wider an arc, the larger the mean coefficient α; hollow: not part of the bank."
    return f'{wide(drawn, "Who reads whose adapter")}<p class="soft">{note}</p>'


def _curves(task: TaskFacts) -> str:
    figures = "".join(_curve(s) for s in task.stages if s.curve or s.validation)
    return f'<h3>{escape(task.task)}</h3><div class="figures">{figures}</div>' if figures else ""


def _curve(stage: StageFacts) -> str:
    """Score and loss over the steps of one stage."""
    result = stage.result
    caption = (
        f"{stage.stage}: kept the state of step {result.best_step} of {result.steps}, validation {stage.score:.1f} %, "
        f"{result.trained_parameters:,} parameters trained"
    )
    chart = _chart(stage, "score", 100.0, f"{stage.label}: score in % by step")
    losses = [p["loss"] for p in (*stage.curve, *stage.validation) if "loss" in p]
    loss = _chart(stage, "loss", max(losses), f"{stage.label}: loss by step") if losses and max(losses) > 0 else ""
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption>{folded('loss', loss)}</figure>"


def _chart(stage: StageFacts, what: str, top: float, title: str) -> str:
    lines = {
        name: [(p["step"], p[what]) for p in points if what in p]
        for name, points in (("training", stage.curve), ("validation", stage.validation))
    }
    return line_chart(lines, title, top)
