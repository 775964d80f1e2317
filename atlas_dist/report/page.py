"""One self-contained HTML page of a run: no request leaves it, it opens from a folder, on a phone and in the dark."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from html import escape
from pathlib import Path

from atlas_dist.report.facts import Cell, RunFacts, SequenceFacts, StageFacts, TaskFacts
from atlas_dist.report.svg import heat_cell, line_chart

_STYLE = (Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")


def write_report(facts: RunFacts, folder: Path) -> Path:
    """Write `index.html`, `run.json` and one CSV a matrix into `folder`; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(asdict(facts), indent=1, sort_keys=True), encoding="utf-8")
    for sequence in facts.sequences:
        for view, rows in sequence.matrix.items():
            _write_csv(folder / f"{sequence.name}-{view}.csv", sequence, rows)
    page = folder / "index.html"
    page.write_text(render(facts), encoding="utf-8")
    return page


def render(facts: RunFacts) -> str:
    """The page as a string."""
    title = f"atlas-dist run {escape(facts.run)}"
    body = "".join(_sequence(s) for s in facts.sequences)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<header><h1>{title}</h1><p>{facts.committed} of {facts.total} jobs are committed facts.</p></header>"
        f"<main>{body}{_jobs(facts)}{_settings(facts)}</main></body></html>"
    )


def _sequence(sequence: SequenceFacts) -> str:
    names = [t.task for t in sequence.upstream]
    parts = [f"<section><h2>{escape(sequence.name)}: {escape(' → '.join(names))}</h2>"]
    parts.append(f"<p>Method {escape(sequence.method)}, seed {sequence.seed}.</p>")
    parts.append(_matrix("Task view: each task read as it was learnt", names, sequence.matrix["task"]))
    if sequence.matrix["latest"] != sequence.matrix["task"]:
        parts.append(_matrix("Latest view: the newest queries and every adapter", names, sequence.matrix["latest"]))
    parts.append(_verdict(sequence))
    parts.append(_summary(sequence))
    parts.append(_reuse([*sequence.upstream, *sequence.downstream]))
    parts.extend(_curves(task) for task in (*sequence.upstream, *sequence.downstream))
    return "".join(parts) + "</section>"


def _matrix(caption: str, names: list[str], rows: tuple[tuple[Cell, ...], ...]) -> str:
    head = "".join(f'<th scope="col">{escape(n)}</th>' for n in names)
    lines = []
    for name, row in zip(names, rows, strict=True):
        cells = "".join(heat_cell(cell, 100.0, ".1f") for cell in row) + "<td></td>" * (len(names) - len(row))
        lines.append(f'<tr><th scope="row">after {escape(name)}</th>{cells}</tr>')
    return _table(f"{escape(caption)} (score in %)", head, "".join(lines))


def _table(caption: str, head: str, rows: str) -> str:
    """A table that scrolls sideways by itself on a narrow screen."""
    return f'<div class="wide"><table><caption>{caption}</caption><tr><td></td>{head}</tr>{rows}</table></div>'


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
    rows += [
        f"<dt>transfer to {escape(task)}</dt><dd>{'missing' if score is None else f'{score:.2f}'}</dd>"
        for task, score in sequence.transfers.items()
    ]
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def _reuse(tasks: list[TaskFacts]) -> str:
    """Mean α of each adapter by task, and by site in a fold-out."""
    shown = [t for t in tasks if t.reuse()]
    if not shown:
        return ""
    columns = list(dict.fromkeys(name for t in shown for name in t.sees))
    head = "".join(f'<th scope="col">{escape(n)}</th>' for n in columns)
    rows, folds = [], []
    for task in shown:
        reuse = task.reuse()
        cells = "".join(heat_cell(reuse.get(name), 1.0, ".3f") for name in columns)
        rows.append(f'<tr><th scope="row">{escape(task.task)}</th>{cells}</tr>')
        folds.append(_reuse_by_site(task))
    return _table("What each task draws on: mean α of each adapter", head, "".join(rows)) + "".join(folds)


def _reuse_by_site(task: TaskFacts) -> str:
    last = next(s for s in reversed(task.stages) if s.reuse)
    seen = task.sees[: len(next(iter(last.reuse.values()))["mean"])]
    head = "".join(f'<th scope="col">{escape(n)}</th>' for n in seen)
    rows = "".join(
        f'<tr><th scope="row">{escape(site)}</th>{"".join(heat_cell(a, 1.0, ".3f") for a in values["mean"])}</tr>'
        for site, values in sorted(last.reuse.items())
    )
    return (
        f"<details><summary>α of {escape(task.task)} by layer and site</summary>"
        f'<div class="wide"><table><tr><td></td>{head}</tr>{rows}</table></div></details>'
    )


def _curves(task: TaskFacts) -> str:
    figures = "".join(_curve(s) for s in task.stages)
    return f"<h3>{escape(task.task)}</h3><div class='figures'>{figures}</div>" if figures else ""


def _curve(stage: StageFacts) -> str:
    training = [(p["step"], p["score"]) for p in stage.curve]
    validation = [(p["step"], p["score"]) for p in stage.validation]
    m = stage.metrics
    caption = (
        f"{stage.stage}: best validation {stage.score:.1f} % at step {m.get('best_step')} of {m.get('steps')}, "
        f"{m.get('trained_parameters', 0):,} parameters trained"
    )
    chart = line_chart({"training": training, "validation": validation}, f"{stage.label}: score in % by step")
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def _jobs(facts: RunFacts) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(j["label"]))}</th><td>{escape(str(j["status"]))}</td>'
        f"<td>{'' if j['score'] is None else format(j['score'], '.1f')}</td><td>{j['seconds']:.1f}</td><td>{j['attempts']}</td>"
        f"<td><code>{escape(str(j['job']))[:12]}</code></td></tr>"
        for j in facts.jobs
    )
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("job", "state", "score %", "seconds", "attempts", "key"))
    return f'<section><h2>Jobs</h2><div class="wide"><table><tr>{heads}</tr>{rows}</table></div></section>'


def _settings(facts: RunFacts) -> str:
    text = escape(json.dumps(facts.spec, indent=1, sort_keys=True))
    return (
        f"<section><h2>Settings</h2><details><summary>What every result depends on</summary><pre>{text}</pre></details></section>"
    )


def _write_csv(path: Path, sequence: SequenceFacts, rows: tuple[tuple[Cell, ...], ...]) -> None:
    names = [t.task for t in sequence.upstream]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["after", *names])
        for name, row in zip(names, rows, strict=True):
            writer.writerow([name, *("" if c is None else f"{c:.4f}" for c in row)])
