"""The matrices of one sequence, each as a heat map and, folded away, as a table.

Scores and what was forgotten; coefficient α, leave-one-out and similarity of tasks; effective rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from atlas_dist.report.agreement import agreement, lost_without
from atlas_dist.report.facts import Cell, SequenceFacts, TaskFacts
from atlas_dist.report.heatmap import HeatCell, HeatMap, heat_map, thinned
from atlas_dist.report.html import folded, in_columns, table
from atlas_dist.report.svg import heat_cell

Triangle = Sequence[Sequence[Cell]]
"""R[i][j]: something about task j after task i; the rows are those of the last tasks."""


@dataclass(frozen=True)
class Named:
    """A matrix whose rows and columns have names: row -> {column: value}."""

    rows: Mapping[str, Mapping[str, float]]

    @property
    def columns(self) -> list[str]:
        """In the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows.values() for name in row))


# ------------------------------------------------------------------------------------------------- scores after each task


def score_matrices(sequence: SequenceFacts) -> str:
    """Maps of the scores in both views and of what was forgotten; the tables below them."""
    names = [task.task for task in sequence.upstream]
    views = {"task": "Score of each task as it was learnt (task view)"}
    if sequence.matrix["latest"] != sequence.matrix["task"]:
        views["latest"] = "The same with the newest queries and every adapter (latest view)"
    maps = [score_map(title, sequence, view) for view, title in views.items()]
    tables = [matrix_table(title, sequence, view) for view, title in views.items()]
    if len(views) > 1:
        lost = sequence.forgetting("latest")
        caption = "Forgetting T<sub>F</sub> in the latest view (% of what was learnt above chance)"
        title = "Forgotten in the latest view, % of what was above chance"
        maps.append(heat_map(_triangle_map(title, names, lost, sequence, "{:.1f} %")))
        tables.append(table(caption, *_triangle_table(names, lost, len(names) - 1, 100.0, sequence.skipped)))
    gap = "<p>· was not measured (sequence.evaluate_every); the last row and each task’s own score always are.</p>"
    listed = folded("The scores as tables", in_columns(tables))
    return f"{in_columns(maps)}{gap if sequence.skipped else ''}{_partly(sequence)}{listed}"


def _partly(sequence: SequenceFacts) -> str:
    """Which later scores are of a sample; "" where none is."""
    if not sequence.rechecked:
        return ""
    parts = ", ".join(f"{read:,} of {of:,} samples of {escape(task)}" for task, (read, of) in sequence.rechecked.items())
    return (
        f"<p>After later tasks a fixed sample is read: {parts} (sequence.recheck). In the task view the score is then that of "
        "the first full pass, which the sample proves; in the latest view it is the sample’s, and what was forgotten is the "
        "difference on the same samples.</p>"
    )


def rank_matrix(sequence: SequenceFacts) -> str:
    """Effective rank of every task after every later one; "" where it was not measured."""
    values = [cell for row in sequence.effective_rank for cell in row if cell is not None]
    if not values:
        return ""
    names = [task.task for task in sequence.upstream]
    title = "Effective rank of the pooled outputs, latest view"
    drawn = heat_map(_triangle_map(title, names, sequence.effective_rank, sequence, "effective rank {:.2f}"))
    body = _triangle_table(names, sequence.effective_rank, len(names), max(values), sequence.skipped)
    return drawn + folded("Effective rank as a table", table(title, *body))


def score_map(title: str, sequence: SequenceFacts, view: str) -> str:
    """The accuracy matrix of a view as a heat map."""
    names = [task.task for task in sequence.upstream]
    return heat_map(_triangle_map(f"{title}, %", names, sequence.matrix[view], sequence, "{:.1f} %", full=100.0))


def matrix_table(caption: str, sequence: SequenceFacts, view: str) -> str:
    """The same as a table: row = after which task, column = which task."""
    names = [task.task for task in sequence.upstream]
    return table(
        f"{escape(caption)} (score in %)", *_triangle_table(names, sequence.matrix[view], len(names), 100.0, sequence.skipped)
    )


def _triangle_table(
    names: list[str], rows: Triangle, columns: int, full: float, skipped: Collection[tuple[int, int]]
) -> tuple[str, str]:
    """Head and body of a table of task j after task i. Of very many tasks it has as many as a map."""
    shown = [j for j in thinned(len(names)) if j < columns]
    head = "".join(f'<th scope="col">{escape(names[j])}</th>' for j in shown)
    first, lines = len(names) - len(rows), []
    for i in thinned(len(names)):
        if i < first:
            continue
        row = rows[i - first]
        cells = "".join(_triangle_cell(row, i, j, full, skipped) for j in shown)
        lines.append(f'<tr><th scope="row">after {escape(names[i])}</th>{cells}</tr>')
    return head, "".join(lines)


def _triangle_cell(row: Sequence[Cell], i: int, j: int, full: float, skipped: Collection[tuple[int, int]]) -> str:
    if j >= len(row):
        return "<td></td>"
    return '<td title="not measured">·</td>' if (i, j) in skipped else heat_cell(row[j], full, ".1f")


def _triangle_map(
    title: str, names: list[str], rows: Triangle, sequence: SequenceFacts, words: str, full: float | None = None
) -> HeatMap:
    """A map of task j after task i. `words`: how a value is said."""
    first = len(names) - len(rows)

    def told(i: int, j: int, value: Cell) -> HeatCell:
        absent = "not measured" if (i, j) in sequence.skipped else "not known yet"
        return HeatCell(value, f"{names[j]} after {names[i]} was learnt: {absent if value is None else words.format(value)}")

    cells = [[told(i, j, value) for j, value in enumerate(row)] for i, row in enumerate(rows, start=first)]
    columns = names[: max((len(row) for row in rows), default=0)]
    return HeatMap(title, [f"after {name}" for name in names[first:]], columns, cells, full=full)


# ---------------------------------------------------------------------------------------------------- tasks and adapters


def alpha_matrices(sequence: SequenceFacts) -> str:
    """Mean coefficient α of each adapter by task, and folded away by layer and site; "" where no task reads one."""
    shown = [task for task in (*sequence.upstream, *sequence.downstream) if task.reuse()]
    if not shown:
        return ""
    found = Named({task.task: task.reuse() for task in shown})
    spreads = {task.task: task.reuse("std") for task in shown}

    def told(row: str, column: str, value: float) -> str:
        spread = spreads[row].get(column)
        over = "" if spread is None else f", {spread:.3f} standard deviation over samples"
        return f"{row} reads the adapter of {column} with coefficient α {value:.3f} on average{over}"

    title = "Mean coefficient α: how much each task reads of each adapter"
    sites = "".join(_by_site(task) for task in shown)
    over_samples = "Standard deviation of α over samples, mean of the sites"
    listed = _named_table(title, found, ".3f")
    listed += _named_table(over_samples, Named(spreads), ".3f") if any(spreads.values()) else ""
    return heat_map(_named_map(title, found, told, ".2f")) + folded("α as tables", listed) + sites


def without_matrix(sequence: SequenceFacts) -> str:
    """What α does not prove: how many points of score a task loses without each of its adapters."""
    found = Named(lost_without(sequence))

    def told(row: str, column: str, value: float) -> str:
        return f"{row} {'loses' if value >= 0 else 'gains'} {abs(value):.1f} points without the adapter of {column}"

    title = "Leave one out: points a task loses without each adapter"
    drawn = replace(_named_map(title, found, told, ".1f"), note=agreement(sequence))
    return heat_map(drawn) + (folded("Leave one out as a table", _named_table(title, found, ".1f")) if found.rows else "")


def similarity_matrix(sequence: SequenceFacts) -> str:
    """How alike the tasks' data are, as far as they were compared before a task was learnt; "" where they were not."""
    tasks = (*sequence.upstream, *sequence.downstream)
    names = {stage.key: task.task for task in tasks for stage in task.stages}
    found = Named(
        {
            task.task: {
                names.get(key, key[:12]): float(value) for key, value in task.metrics["similarity"].items() if value is not None
            }
            for task in tasks
            if task.metrics.get("similarity")
        }
    )
    title = "Similarity of the tasks’ data, -1 to 1"

    def told(row: str, column: str, value: float) -> str:
        return f"{row} and {column}: similarity {value:.2f}"

    return heat_map(_named_map(title, found, told, ".2f", full=1.0)) + (
        folded("Similarity as a table", _named_table(title, found, ".3f")) if found.rows else ""
    )


def _named_map(title: str, found: Named, told: Callable[[str, str, float], str], form: str, full: float | None = None) -> HeatMap:
    columns = found.columns
    cells = [[HeatCell(row[c], told(name, c, row[c])) if c in row else None for c in columns] for name, row in found.rows.items()]
    return HeatMap(title, list(found.rows), columns, cells, form, full)


def _named_table(title: str, found: Named, form: str) -> str:
    """The same with all digits. Colours as in the map."""
    columns = [found.columns[j] for j in thinned(len(found.columns))]
    names = [list(found.rows)[i] for i in thinned(len(found.rows))]
    most = max((abs(value) for row in found.rows.values() for value in row.values()), default=0.0)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(heat_cell(found.rows[name].get(c), most, form) for c in columns)}</tr>'
        for name in names
    )
    return table(escape(title), "".join(f'<th scope="col">{escape(c)}</th>' for c in columns), rows)


def _by_site(task: TaskFacts) -> str:
    """Adapter by layer and site of the task's last stage that noted α."""
    last = next(stage for stage in reversed(task.stages) if stage.reuse)
    sites = sorted(last.reuse, key=_in_depth)
    count = len(last.reuse[sites[0]]["mean"])
    names = [task.adapters[n] if n < len(task.adapters) else f"adapter {n + 1}" for n in range(count)]

    def cell(name: str, number: int, site: str) -> HeatCell:
        values = last.reuse[site]
        mean, spreads = values["mean"][number], values.get("std", ())
        over = f" ± {spreads[number]:.3f} over samples" if number < len(spreads) else ""
        return HeatCell(mean, f"{task.task} reads the adapter of {name} at {site}: α {mean:.3f}{over}")

    cells = [[cell(name, number, site) for site in sites] for number, name in enumerate(names)]
    title = f"Coefficient α by layer and site, mean over {task.task}’s validation samples"
    return folded(f"{task.task}: α by layer and site", heat_map(HeatMap(title, names, sites, cells, ".2f")))


def _in_depth(site: str) -> tuple[tuple[str, int], ...]:
    """L2.aftattn before L10.aftattn; a backbone's towers, which have a letter each, one after the other. Likewise paths of linear
    layers, `layer.2.query` before `layer.10.query`."""
    return tuple((word, int(number or 0)) for word, number in re.findall(r"([^0-9.]*)([0-9]*)\.?", site))
