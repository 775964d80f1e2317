"""What a report has of any run, whatever was learnt: its jobs, plan and actual, the timeline, the environment."""

from __future__ import annotations

import json
from html import escape
from statistics import fmean

from atlas_dist.report.facts import RunFacts
from atlas_dist.report.html import folded, table, wide
from atlas_dist.report.outlook import Pace
from atlas_dist.report.svg import Bar, bars
from atlas_dist.report.timeline import Span


def jobs_section(facts: RunFacts) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(j["label"]))}</th><td>{escape(str(j["status"]))}</td>'
        f"<td>{'' if j['score'] is None else format(j['score'], '.1f')}</td><td>{j['seconds']:.1f}</td><td>{j['attempts']}</td>"
        f"<td><code>{escape(str(j['job']))[:12]}</code></td><td>{escape(str(j['adopted_from']))}</td></tr>"
        for j in facts.jobs
    )
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("state", "score %", "seconds", "attempts", "key", "adopted from"))
    every = table("Every job of the plan", heads, rows)
    return f'<section id="jobs"><h2>Jobs</h2>{_compared(facts)}{_failures(facts)}{folded("Every job", every)}</section>'


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


def timeline_section(facts: RunFacts) -> str:
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
        f"{folded('What happened to the run', f'<ul>{moments}</ul>')}</section>"
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


def environment_section(facts: RunFacts) -> str:
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
        f"{folded('What every result depends on', f'<pre>{text}</pre>')}"
        f"{folded('Every hash: data, jobs, files', f'<pre>{listed}</pre>')}</section>"
    )
