"""One self-contained HTML page of a run: no request leaves it, it opens from a folder, on a phone and in the dark."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path
from statistics import fmean

from atlas_dist.report.facts import Cell, RunFacts, SequenceFacts, StageFacts, TaskFacts
from atlas_dist.report.files import write_tables
from atlas_dist.report.html import document, table, wide
from atlas_dist.report.outlook import Pace
from atlas_dist.report.speed import speed_section
from atlas_dist.report.svg import Bar, bars, heat_cell, line_chart, lineage
from atlas_dist.report.timeline import Span


def write_report(facts: RunFacts, folder: Path, notes: Sequence[str] = ()) -> Path:
    """Write `index.html`, and beside it the same as JSON, CSV and TensorBoard events; return the page's path. Raises OSError.

    `notes`: sentences about the run as a whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(facts, folder)
    page = folder / "index.html"
    page.write_text(render(facts, notes), encoding="utf-8")
    return page


def render(facts: RunFacts, notes: Sequence[str] = ()) -> str:
    """The page as a string."""
    links = {f"s{number}": sequence.name for number, sequence in enumerate(facts.sequences)}
    links |= {part: part for part in ("jobs", "timeline", "environment")}
    body = "".join(_sequence(s, number) for number, s in enumerate(facts.sequences))
    lede = " ".join([f"{facts.committed} of {facts.total} jobs are committed facts.", *map(escape, notes)])
    body += _jobs(facts) + _timeline(facts) + _environment(facts)
    return document(f"atlas-dist run {facts.run}", lede, links, body)


def _sequence(sequence: SequenceFacts, number: int) -> str:
    names = [t.task for t in sequence.upstream]
    parts = [f'<section id="s{number}"><h2>{escape(sequence.name)}: {escape(" → ".join(names))}</h2>']
    parts.append(f"<p>Method {escape(sequence.method)}, seed {sequence.seed}.</p>")
    parts.append(_verdict(sequence))
    parts.append('<div class="side">')
    parts.append(matrix_table("Task view: each task read as it was learnt", names, sequence.matrix["task"], sequence.skipped))
    differs = sequence.matrix["latest"] != sequence.matrix["task"]
    if differs:
        latest = sequence.matrix["latest"]
        parts.append(matrix_table("Latest view: the newest queries and every adapter", names, latest, sequence.skipped))
        parts.append(_forgetting(sequence))
    parts.append("</div>")
    if sequence.skipped:
        parts.append("<p>· was not measured (sequence.evaluate_every); the last row and each task’s own score always are.</p>")
    parts.append(_summary(sequence))
    parts.append(_transfers(sequence))
    parts.append(_lineage(sequence))
    parts.append(_reuse([*sequence.upstream, *sequence.downstream]))
    parts.append(_without(sequence))
    parts.append(_effective_rank(sequence))
    parts.extend(_curves(task) for task in (*sequence.upstream, *sequence.downstream))
    parts.append(speed_section([*sequence.upstream, *sequence.downstream]))
    return "".join(parts) + "</section>"


def matrix_table(
    caption: str, names: list[str], rows: tuple[tuple[Cell, ...], ...], skipped: Collection[tuple[int, int]] = ()
) -> str:
    """An accuracy matrix as a heat map: row = after which task, column = which task; `skipped` cells were not measured."""
    return table(f"{escape(caption)} (score in %)", *_triangle(names, rows, len(names), 100.0, skipped))


def _triangle(
    names: list[str], rows: tuple[tuple[Cell, ...], ...], columns: int, full: float, skipped: Collection[tuple[int, int]]
) -> tuple[str, str]:
    """Head and body of a table of task j after task i; `rows` are those of the last tasks."""
    head = "".join(f'<th scope="col">{escape(n)}</th>' for n in names[:columns])
    lines = []
    for i, row in enumerate(rows, start=len(names) - len(rows)):
        cells = [
            '<td title="not measured">·</td>' if (i, j) in skipped else heat_cell(cell, full, ".1f") for j, cell in enumerate(row)
        ]
        filled = "".join(cells) + "<td></td>" * (columns - len(row))
        lines.append(f'<tr><th scope="row">after {escape(names[i])}</th>{filled}</tr>')
    return head, "".join(lines)


def _forgetting(sequence: SequenceFacts) -> str:
    """T_F of every task after every later one, in the latest view (in the task view it is 0 by construction, and checked)."""
    names = [t.task for t in sequence.upstream]
    head, body = _triangle(names, sequence.forgetting("latest"), len(names) - 1, 100.0, sequence.skipped)
    return table("Forgetting T<sub>F</sub> in the latest view (% of what was learnt above chance)", head, body)


def _verdict(sequence: SequenceFacts) -> str:
    changed = sequence.changed_predictions()
    if changed:
        named = escape(", ".join(changed))
        return f'<p class="bad" role="alert">The task-view predictions of {named} changed. This must not happen.</p>'
    if sequence.complete and len(sequence.upstream) > 1:
        return '<p class="good">Task view: every old task’s predictions are bitwise equal after every later task.</p>'
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
    """Who draws on whom. A task's own adapter is not an arc."""
    tasks = [*sequence.upstream, *sequence.downstream]
    place = {task.task: number for number, task in enumerate(tasks)}
    edges = {}
    for task in tasks:
        reuse = task.reuse()
        for name in task.sees:
            if name != task.task and name in place and task.stages:
                edges[place[name], place[task.task]] = reuse.get(name, 1.0)
    if not edges:
        return ""
    beside = frozenset(range(len(sequence.upstream), len(tasks)))
    title = "; ".join(f"{tasks[b].task} draws on {tasks[a].task}" for a, b in edges)
    drawn = lineage([t.task for t in tasks], edges, beside, f"Lineage of the bank: {title}")
    note = "the wider an arc, the larger the mean α; hollow: not part of the bank"
    return f'<h3>Lineage of the bank</h3>{wide(drawn, "Lineage of the bank")}<p class="soft">{note}</p>'


def _reuse(tasks: list[TaskFacts]) -> str:
    """Mean α of each adapter by task, then by layer and site. They lie close together: colours run from the least to the most."""
    shown = [t for t in tasks if t.reuse()]
    if not shown:
        return ""
    columns = list(dict.fromkeys(name for t in shown for name in t.sees))
    head = "".join(f'<th scope="col">{escape(n)}</th>' for n in columns)
    means = [value for task in shown for value in task.reuse().values()]
    rows = []
    for task in shown:
        reuse = task.reuse()
        cells = "".join(heat_cell(reuse.get(name), max(means), ".3f", min(means)) for name in columns)
        rows.append(f'<tr><th scope="row">{escape(task.task)}</th>{cells}</tr>')
    means_table = table("What each task draws on: mean α of each adapter", head, "".join(rows))
    return means_table + "".join(_reuse_by_site(task) for task in shown)


def _reuse_by_site(task: TaskFacts) -> str:
    """Adapter by layer and site, in hundredths: dense enough for twelve layers."""
    last = next(s for s in reversed(task.stages) if s.reuse)
    sites = sorted(last.reuse, key=_in_depth)
    values = [a for site in sites for a in last.reuse[site]["mean"]]
    low, high = min(values), max(values)
    head = "".join(f'<th scope="col">{escape(site)}</th>' for site in sites)
    rows = []
    for number in range(len(last.reuse[sites[0]]["mean"])):
        name = task.sees[number] if number < len(task.sees) else f"adapter {number + 1}"
        cells = "".join(heat_cell(100 * last.reuse[site]["mean"][number], 100 * high, ".0f", 100 * low) for site in sites)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    caption = f"α × 100, mean over {escape(task.task)}’s validation samples; colours from {low:.2f} to {high:.2f}"
    return (
        f"<details><summary>{escape(task.task)}: by layer and site</summary>"
        f'<div class="dense">{table(caption, head, "".join(rows))}</div></details>'
    )


def _in_depth(site: str) -> tuple[str, int, str]:
    """L2.aftattn before L10.aftattn; a backbone's towers, which have a letter each, one after the other."""
    layer, _, rest = site.partition(".")
    return (layer[:1], int(layer[1:]) if layer[1:].isdigit() else 0, rest)


def _without(sequence: SequenceFacts) -> str:
    """What α does not prove: how many points a task loses without each of its adapters."""
    tasks = {task.task: task for task in (*sequence.upstream, *sequence.downstream)}
    shown = {name: scores for name, scores in sequence.without.items() if name in tasks}
    if not shown:
        return ""
    whole = {name: sequence.matrix["task"][i][i] for i, name in enumerate(t.task for t in sequence.upstream)} | dict(
        sequence.transfers
    )
    lost = {
        name: dict(zip(tasks[name].sees, (own - score for score in scores), strict=False))
        for name, scores in shown.items()
        if (own := whole.get(name)) is not None
    }
    columns = list(dict.fromkeys(adapter for row in lost.values() for adapter in row))
    most = max((abs(value) for row in lost.values() for value in row.values()), default=1.0) or 1.0
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(heat_cell(row.get(column), most, ".1f") for column in columns)}</tr>'
        for name, row in lost.items()
    ]
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    return table("Leave one out: points of score that a task loses without each adapter", head, "".join(rows))


def _effective_rank(sequence: SequenceFacts) -> str:
    """Growth of the representation; nothing where it was not measured."""
    values = [cell for row in sequence.effective_rank for cell in row if cell is not None]
    if not values:
        return ""
    names = [t.task for t in sequence.upstream]
    head, body = _triangle(names, sequence.effective_rank, len(names), max(values), sequence.skipped)
    return table("Effective rank of the pooled outputs, latest view: does the representation grow?", head, body)


def _curves(task: TaskFacts) -> str:
    figures = "".join(_curve(s) for s in task.stages)
    return f"<h3>{escape(task.task)}</h3><div class='figures'>{figures}</div>" if figures else ""


def _curve(stage: StageFacts) -> str:
    """Score and loss over the steps of one stage."""
    result = stage.result
    caption = (
        f"{stage.stage}: best validation {stage.score:.1f} % at step {result.best_step} of {result.steps}, "
        f"{result.trained_parameters:,} parameters trained"
    )
    chart = _chart(stage, "score", 100.0, f"{stage.label}: score in % by step")
    losses = [p["loss"] for p in (*stage.curve, *stage.validation) if "loss" in p]
    loss = _chart(stage, "loss", max(losses), f"{stage.label}: loss by step") if losses and max(losses) > 0 else ""
    more = f"<details><summary>loss</summary>{loss}</details>" if loss else ""
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption>{more}</figure>"


def _chart(stage: StageFacts, what: str, top: float, title: str) -> str:
    lines = {
        name: [(p["step"], p[what]) for p in points if what in p]
        for name, points in (("training", stage.curve), ("validation", stage.validation))
    }
    return line_chart(lines, title, top)


def _jobs(facts: RunFacts) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(j["label"]))}</th><td>{escape(str(j["status"]))}</td>'
        f"<td>{'' if j['score'] is None else format(j['score'], '.1f')}</td><td>{j['seconds']:.1f}</td><td>{j['attempts']}</td>"
        f"<td><code>{escape(str(j['job']))[:12]}</code></td><td>{escape(str(j['adopted_from']))}</td></tr>"
        for j in facts.jobs
    )
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("state", "score %", "seconds", "attempts", "key", "adopted from"))
    every = table("Every job of the plan", heads, rows)
    return f'<section id="jobs"><h2>Jobs</h2>{_compared(facts)}{every}{_failures(facts)}</section>'


def _compared(facts: RunFacts) -> str:
    """What `plan` foresaw when the run began, beside what came."""
    if not facts.compared:
        return ""
    price, rows = facts.worker_hour, []
    for row in facts.compared:
        hours = row.worker_hours_foreseen
        lines = [
            ("samples", f"{row.samples_foreseen:,}", f"{row.samples:,}"),
            ("seconds", _range(row.seconds_foreseen, ",.0f"), f"{row.seconds:,.0f}"),
            ("worker hours", _range(hours, ".3g"), f"{row.worker_hours:.3g}"),
        ]
        if price:
            cost = None if hours is None else (hours[0] * price, hours[1] * price)
            lines.append(("cost", _range(cost, ",.2f"), f"{row.worker_hours * price:,.2f}"))
        head = f"{escape(row.what)}, {row.jobs} of {row.of} jobs"
        rows += [f'<tr><th scope="row">{head}: {what}</th><td>{before}</td><td>{came}</td></tr>' for what, before, came in lines]
    caption = "Plan and actual: what was to do when the run began; seconds of the worker groups, one after the other"
    return table(caption, '<th scope="col">foreseen</th><th scope="col">came</th>', "".join(rows))


def _range(pace: Pace | None, form: str) -> str:
    if pace is None:
        return "not known then"
    low, high = (format(value, form) for value in pace)
    return low if low == high else f"{low} to {high}"


def _failures(facts: RunFacts) -> str:
    lines = [f"<li>{escape(j['label'])}: {escape(j['failure'])}</li>" for j in facts.jobs if j["failure"]]
    return f"<h3>Attempts that failed</h3><ul>{''.join(lines)}</ul>" if lines else ""


def _timeline(facts: RunFacts) -> str:
    line = facts.timeline
    if not line.spans:
        return '<section id="timeline"><h2>Timeline</h2><p>Nothing was dispatched.</p></section>'
    rows = [_bar(span.label, span) for span in line.spans]
    on_nodes = sorted(
        (_bar(node, span) for span in line.spans for node in span.nodes or ("not known where",)), key=lambda b: b[0]
    )
    moments = "".join(f"<li>{m.at:.0f} s: {escape(m.what)} {escape(m.reason)}</li>" for m in line.moments)
    done = [span.end - span.begin for span in line.spans if span.outcome == "commit"]
    pace = f", a committed attempt {fmean(done):.1f} s on average" if done else ""
    return (
        f'<section id="timeline"><h2>Timeline</h2><p>{len(line.spans)} attempts in {line.seconds:.0f} s, '
        f"{line.faults} of them failed{pace}.</p>"
        f"{wide(bars(rows, line.seconds, 'Attempts over time'), 'Attempts over time')}"
        f"{_nodes(on_nodes, line.seconds)}"
        f"<details><summary>What happened to the run</summary><ul>{moments}</ul></details></section>"
    )


def _bar(name: str, span: Span) -> Bar:
    kind = {"commit": "done", "fail": "failed"}.get(span.outcome, "open")
    where = f" on {', '.join(span.nodes)}" if span.nodes else ""
    told = f"{span.label}: {span.begin:.0f} to {span.end:.0f} s{where}, {span.outcome or 'under way'} {span.reason}"
    return name, span.begin, span.end, kind, told


def _nodes(rows: list[Bar], seconds: float) -> str:
    """Which node was busy when. Attempts that failed took their word with them: where they ran is not known."""
    if all(kind != "done" or name == "not known where" for name, _, _, kind, _ in rows):
        return ""
    return f"<h3>By node</h3>{wide(bars(rows, seconds, 'Attempts by node over time'), 'Attempts by node')}"


def _environment(facts: RunFacts) -> str:
    """Versions, settings, and the digest of everything that a result depends on."""
    text = escape(json.dumps(facts.spec, indent=1, sort_keys=True))
    told = facts.trained_on or (facts.environment,)
    versions = "".join(
        f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in each.items())}</dl>" for each in told
    )
    whose = "What trained:" if facts.trained_on else "What made this report (the version that trained did not note its own):"
    hashes = []
    for sequence in facts.sequences:
        for task in (*sequence.upstream, *sequence.downstream):
            hashes += [f"{name}  {digest}" for name, digest in task.data.items()]
            for stage in task.stages:
                hashes.append(f"{stage.label}  key {stage.key}")
                hashes += [f"    {name}  {digest}" for name, digest in stage.files.items()]
    listed = escape("\n".join(dict.fromkeys(hashes)))
    return (
        f'<section id="environment"><h2>Environment and settings</h2><p>{whose}</p>{versions}'
        f"<details><summary>What every result depends on</summary><pre>{text}</pre></details>"
        f"<details><summary>Every hash: data, jobs, files</summary><pre>{listed}</pre></details></section>"
    )
