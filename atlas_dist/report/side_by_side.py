"""Several runs on one page: measures, scores, matrices and curves side by side, and what they did differently."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from atlas_dist.core.keys import flattened
from atlas_dist.report.facts import Cell, RunFacts, SequenceFacts, StageFacts, TaskFacts
from atlas_dist.report.html import document, folded, in_columns, table
from atlas_dist.report.matrices import matrix_table, score_map
from atlas_dist.report.measures import AVERAGE, FORGETTING, MEASURES, PARAMETERS, SECONDS, STEPS, Row
from atlas_dist.report.overview import score_row
from atlas_dist.report.plot import plot
from atlas_dist.report.svg import COLOURS, heat_cell, line_chart

PAGE_FILE, MEASURES_FILE, SETTINGS_FILE = "index.html", "measures.csv", "settings.csv"
_COUNTS = (PARAMETERS, STEPS, SECONDS)
_ABSENT = "–"
_SPREAD = "Mean over orders and seeds ± standard deviation."


@dataclass(frozen=True)
class Side:
    """One of the runs. `name` tells it from the others; `rows` are its measures, a row a method."""

    name: str
    facts: RunFacts
    rows: tuple[Row, ...]

    def label(self, sequence: SequenceFacts) -> str:
        """How one of its sequences is called on the page."""
        return self.name if len(self.facts.sequences) == 1 else f"{self.name} {sequence.name}"


def write_side_by_side(sides: Sequence[Side], folder: Path) -> Path:
    """Write `index.html`, `measures.csv` and `settings.csv`; return the page's path. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / MEASURES_FILE, ["run", "method", "measure", "mean", "deviation", "count"], _measures(sides))
    names = [side.name for side in sides]
    _write(folder / SETTINGS_FILE, ["setting", *names], [[key, *values] for key, values in differences(sides).items()])
    page = folder / PAGE_FILE
    page.write_text(render(sides), encoding="utf-8")
    return page


def differences(sides: Sequence[Side]) -> dict[str, list[str]]:
    """Dotted name of each setting, and digest of each data set, that differs -> its value in each run; "–" = absent."""
    flat = [_shown(side.facts.spec) | _data(side.facts) for side in sides]
    keys = sorted({key for each in flat for key in each})
    rows = {key: [each.get(key, _ABSENT) for each in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def cautions(sides: Sequence[Side]) -> list[str]:
    """What of these runs does not measure the same thing, a sentence each; [] where every number may be put beside its like."""
    told = []
    tasks = {side.name: sorted(_tasks(side.facts, upstream=True)) for side in sides if side.facts.sequences}
    if len(set(map(tuple, tasks.values()))) > 1:
        told.append(f"The averages are over different tasks. {_each({n: ', '.join(t) for n, t in tasks.items()})}.")
    backbones = {side.name: str(side.facts.spec.get("backbone", {}).get("name", _ABSENT)) for side in sides}
    if len(set(backbones.values())) > 1:
        told.append(f"The backbones differ, so scores compare them too. {_each(backbones)}.")
    meanings = {side.name: _meanings(side.facts) for side in sides}
    for task in dict.fromkeys(task for meaning in meanings.values() for task in meaning):
        mine = {name: meaning[task] for name, meaning in meanings.items() if task in meaning}
        for what in dict.fromkeys(what for each in mine.values() for what in each):
            values = {name: each.get(what, _ABSENT) for name, each in mine.items()}
            if len(set(values.values())) > 1:
                told.append(f"{task}: {what} differs, so its scores are of different things. {_each(values)}.")
    return told


def _meanings(facts: RunFacts) -> dict[str, dict[str, str]]:
    """task -> all that says what its score is a score of, by name."""
    settings = facts.spec.get("tasks", {})
    return {
        name: {key: json.dumps(settings[name][key]) for key in _OF_A_TASK if key in settings.get(name, {})}
        | dict(zip(_SPLITS, (digest[:8] for digest in task.data.values()), strict=False))
        for name, task in _tasks(facts).items()
    }


_SPLITS = ("training data", "validation data", "test data")
"""The order in which a task tells its data; the last one only where there is one."""
_OF_A_TASK = ("kind", "classes", "max_text", "shots")


def _tasks(facts: RunFacts, *, upstream: bool = False) -> dict[str, TaskFacts]:
    return {t.task: t for s in facts.sequences for t in (*s.upstream, *(() if upstream else s.downstream))}


def _each(values: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def render(sides: Sequence[Side]) -> str:
    """The page as a string."""
    differing = differences(sides)
    lede = f"{len(sides)} runs, {len(differing)} settings that differ. " + " ".join(
        f"{escape(s.name)}: {s.facts.committed} of {s.facts.total} jobs." for s in sides
    )
    parts = {
        "measures": ("measures", _measure_table(sides)),
        "scores": ("scores by task", _score_table(sides)),
        "matrices": ("matrices", _matrices(sides)),
        "curves": ("curves", _curves(sides)),
        "settings": ("settings", _settings(sides, differing)),
        "environments": ("environments", _environments(sides)),
    }
    body = "".join(_part(at, name, content) for at, (name, content) in parts.items())
    title = f"atlas-dist: {' and '.join(side.name for side in sides)}"
    links = {at: name for at, (name, _) in parts.items()}
    return document(title, lede, links, body, _unlike(sides) + _picture(sides))


def _part(at: str, name: str, content: str) -> str:
    return f'<section id="{at}"><h2>{escape(name[0].upper() + name[1:])}</h2>{content}</section>'


def _unlike(sides: Sequence[Side]) -> str:
    """What must be known before any number is read; "" where every number may be put beside its like."""
    listed = "".join(f"<li>{escape(sentence)}</li>" for sentence in cautions(sides))
    return _part("unlike", "not to be compared as it stands", f"<ul>{listed}</ul>") if listed else ""


def _picture(sides: Sequence[Side]) -> str:
    """Average score of every run and method, with chance and what was forgotten: the page's answer."""
    rows = []
    for side in sides:
        chances = [task.random_score for task in _tasks(side.facts, upstream=True).values()]
        marks = {"chance": fmean(chances)} if chances else {}
        for row in side.rows:
            name = side.name if len(side.rows) == 1 else f"{side.name} {row.variant}"
            lost = row.measures.get(FORGETTING)
            rows.append(score_row(name, row.measures.get(AVERAGE), marks, "" if lost is None else f"forgotten {lost} %"))
    several = any(len(side.facts.sequences) > 1 for side in sides)
    return plot("Average score at the end, in %", rows, 0, 100, _SPREAD if several else "")


# ------------------------------------------------------------------------------------------------------------------ numbers


def _measure_table(sides: Sequence[Side]) -> str:
    """A row a run and method; the view of old tasks is the one that counts for the method."""
    known = [name for name in MEASURES if any(name in row.measures for side in sides for row in side.rows)]
    lines = []
    for side in sides:
        for row in side.rows:
            cells = "".join(f"<td>{_measure(name, row)}</td>" for name in known)
            lines.append(f'<tr><th scope="row">{escape(side.name)}</th><td class="text">{escape(row.variant)}</td>{cells}</tr>')
        if not side.rows:
            gap = "<td>–</td>" * len(known)
            lines.append(f'<tr><th scope="row">{escape(side.name)}</th><td class="text">not complete yet</td>{gap}</tr>')
    head = _heads("method", known)
    refused = "".join(f"<li>{escape(side.name)}: {escape(r)}</li>" for side in sides for row in side.rows for r in row.refused)
    told = _table("Accuracy in %; forgetting and transfer in % of what is above chance; mean over orders and seeds", head, lines)
    return told + (f"<p>Not compared with a reference:</p><ul>{refused}</ul>" if refused else "")


def _measure(name: str, row: Row) -> str:
    found = row.measures.get(name)
    if found is None:
        return _ABSENT
    return f"{found.mean:,.0f}" if name in _COUNTS else str(found)


def _score_table(sides: Sequence[Side]) -> str:
    """Score of each task right after it was learnt, and on the final bank in the latest view; transfers on the final bank."""
    per_side = [_scores(side.facts) for side in sides]
    lines = []
    for key in dict.fromkeys(key for scores in per_side for key in scores):
        cells = "".join(heat_cell(scores.get(key), 100.0, ".1f") for scores in per_side)
        lines.append(f'<tr><th scope="row">{escape(key[0])}</th><td class="text">{escape(key[1])}</td>{cells}</tr>')
    head = _heads("read", [side.name for side in sides])
    return _table("Score in %, mean over the run’s orders and seeds", head, lines)


def _scores(facts: RunFacts) -> dict[tuple[str, str], float]:
    """(task, how it is read) -> mean score over the sequences in which it is known."""
    found: dict[tuple[str, str], list[float]] = {}

    def note(task: str, read: str, cell: Cell) -> None:
        if cell is not None:
            found.setdefault((task, read), []).append(cell)

    for sequence in facts.sequences:
        for i, task in enumerate(sequence.upstream):
            note(task.task, "as learnt", sequence.matrix["task"][i][i])
            if i + 1 < len(sequence.upstream):
                note(task.task, "at the end, latest view", sequence.matrix["latest"][-1][i])
        for name, cell in sequence.transfers.items():
            note(name, "transfer", cell)
    return {key: fmean(values) for key, values in found.items()}


def _matrices(sides: Sequence[Side]) -> str:
    """Every score matrix as a map; the tables of the same folded away."""
    shown = [
        (f"{side.label(sequence)}: {called}", sequence, view)
        for view, called in (("task", "task view"), ("latest", "latest view"))
        for side in sides
        for sequence in side.facts.sequences
        if view == "task" or sequence.matrix["latest"] != sequence.matrix["task"]
    ]
    tables = (matrix_table(title, sequence, view) for title, sequence, view in shown)
    return f"{in_columns(score_map(*each) for each in shown)}{folded('As tables', in_columns(tables))}"


# ------------------------------------------------------------------------------------------------------------------- curves


def _curves(sides: Sequence[Side]) -> str:
    """Validation score and loss of the same task and stage, a line a run."""
    lines: dict[tuple[str, str], dict[str, StageFacts]] = {}
    shown = [(side, sequence) for side in sides for sequence in side.facts.sequences]
    left_out = max(0, len(shown) - COLOURS)
    if left_out:
        shown = [(side, side.facts.sequences[0]) for side in sides if side.facts.sequences][:COLOURS]
    for side, sequence in shown:
        for task in (*sequence.upstream, *sequence.downstream):
            for stage in task.stages:
                lines.setdefault((task.task, stage.stage), {})[side.label(sequence)] = stage
    order = [side.label(sequence) for side, sequence in shown]
    figures = "".join(_figure(task, stage, {name: found.get(name) for name in order}) for (task, stage), found in lines.items())
    note = f'<p class="soft">Of {left_out + COLOURS} sequences, the first of each run is drawn.</p>' if left_out else ""
    return f"{note}<div class='figures'>{figures}</div>" if figures else "<p>No stage has been committed yet.</p>"


def _figure(task: str, stage: str, found: Mapping[str, StageFacts | None]) -> str:
    def chart(what: str, top: float) -> str:
        points = {name: [(p["step"], p[what]) for p in s.validation if what in p] if s else [] for name, s in found.items()}
        return line_chart(points, f"{task} {stage}: validation {what} by step", top)

    losses = [p["loss"] for s in found.values() if s for p in s.validation if "loss" in p]
    more = f"<details><summary>loss</summary>{chart('loss', max(losses))}</details>" if losses and max(losses) > 0 else ""
    best = ", ".join(f"{name} {s.score:.1f} %" for name, s in found.items() if s)
    return (
        f"<figure>{chart('score', 100.0)}<figcaption>{escape(task)} {escape(stage)}: {escape(best)}</figcaption>{more}</figure>"
    )


# ------------------------------------------------------------------------------------------------- settings, environments


def _settings(sides: Sequence[Side], differing: Mapping[str, Sequence[str]]) -> str:
    if not differing:
        return "<p>None: the runs were started with the same settings on the same data.</p>"
    return _plain("What differs", [side.name for side in sides], differing)


def _environments(sides: Sequence[Side]) -> str:
    """What the runs were trained on, as their jobs noted it; older runs did not."""
    heard = {side.name: _joined(side.facts.trained_on) for side in sides if side.facts.trained_on}
    silent = [side.name for side in sides if not side.facts.trained_on]
    note = f"<p>Not noted by the version that ran it: {escape(', '.join(silent))}.</p>" if silent else ""
    keys = list(dict.fromkeys(key for each in heard.values() for key in each))
    rows = {key: [each.get(key, _ABSENT) for each in heard.values()] for key in keys}
    return (_plain("What trained; where the runs differ is set in bold", list(heard), rows, mark=True) if rows else "") + note


def _joined(environments: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """One column: where jobs of a run differ, all values."""
    keys = dict.fromkeys(key for each in environments for key in each)
    return {key: ", ".join(dict.fromkeys(each.get(key, _ABSENT) for each in environments)) for key in keys}


def _heads(first: str, others: Sequence[str]) -> str:
    listed = "".join(f'<th scope="col">{escape(name)}</th>' for name in others)
    return f'<th scope="col" class="text">{escape(first)}</th>{listed}'


def _plain(caption: str, names: Sequence[str], rows: Mapping[str, Sequence[str]], *, mark: bool = False) -> str:
    """A row a name, a column a run; `mark`: rows whose values differ."""
    lines = []
    for key, values in rows.items():
        marked = ' class="text differs"' if mark and len(set(values)) > 1 else ' class="text"'
        cells = "".join(f"<td{marked}>{escape(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row"><code>{escape(key)}</code></th>{cells}</tr>')
    head = "".join(f'<th scope="col" class="text">{escape(name)}</th>' for name in names)
    return _table(caption, head, lines)


def _table(caption: str, head: str, lines: Sequence[str]) -> str:
    return table(caption, head, "".join(lines))


def _shown(spec: Mapping[str, Any]) -> dict[str, str]:
    """Dotted names and values as JSON; what was left to a default (null) is not a difference of its own."""
    leaves = {name: value for name, value in flattened(spec) if value is not None and value != {}}
    return {name: value if isinstance(value, str) and value else json.dumps(value) for name, value in leaves.items()}


def _data(facts: RunFacts) -> dict[str, str]:
    return {f"data {name}": digest[:16] for task in _tasks(facts).values() for name, digest in task.data.items()}


def _measures(sides: Sequence[Side]) -> list[list[str]]:
    return [
        [side.name, row.variant, name, f"{found.mean:.6g}", f"{found.deviation:.6g}", str(found.count)]
        for side in sides
        for row in side.rows
        for name, found in row.measures.items()
    ]


def _write(path: Path, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        writer.writerows(rows)


def brief(sides: Sequence[Side]) -> list[tuple[str, str, str, str]]:
    """(run, method, average accuracy, forgetting) for a terminal."""
    return [
        (side.name, row.variant, _measure(AVERAGE, row), _measure(FORGETTING, row)) for side in sides for row in side.rows
    ] + [(side.name, "not complete yet", _ABSENT, _ABSENT) for side in sides if not side.rows]
