"""A run's results on a terminal: the accuracy matrix, what each task reused, where things lie."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from atlas_dist.core.results import SelectResult
from atlas_dist.core.selection import Form
from atlas_dist.report.facts import Cell, RunFacts, SequenceFacts
from atlas_dist.report.later import written_sentence
from atlas_dist.report.masked import masked_sentence

NOT_MEASURED = "·"


def show(facts: RunFacts, console: Console, places: Iterable[tuple[str, str]] = ()) -> None:
    """Print every sequence, then `places` as (what, where) lines."""
    for sequence in facts.sequences:
        _show_sequence(sequence, console, titled=len(facts.sequences) > 1)
    for what, where in places:
        console.print(f"[bold]{what}[/bold]  {where}", soft_wrap=True)


def _show_sequence(sequence: SequenceFacts, console: Console, *, titled: bool) -> None:
    if titled:
        console.rule(sequence.name)
    names = [t.task for t in sequence.upstream]
    _headed(
        console,
        "Score (%) after each task, every task read as it was learnt (task view)",
        _matrix(sequence, "task"),
    )
    if any(len(row) > 1 for row in sequence.matrix["latest"]) and sequence.matrix["latest"] != sequence.matrix["task"]:
        _headed(console, "The same with the newest queries and every adapter (latest view)", _matrix(sequence, "latest"))
    if sequence.skipped:
        console.print(
            f"{NOT_MEASURED} not measured (sequence.evaluate_every); the last row and each task's own score always are."
        )
    changed = sequence.changed_predictions()
    if changed:
        console.print(f"[bold red]Predictions changed in the task view: {', '.join(changed)}[/bold red]")
    elif len(names) > 1 and sequence.complete:
        told = f"Task view: every old task's predictions are bitwise equal after every later task{sequence.proved_on}."
        console.print(told, markup=False, soft_wrap=True)
    if any(task.tested for task in (*sequence.upstream, *sequence.downstream)):
        console.print(sequence.scored_on, markup=False, soft_wrap=True)
    if told := written_sentence(sequence.token_f1):
        console.print(told, markup=False, soft_wrap=True)
    _show_committed(sequence, console)
    _show_reuse(sequence, console)
    for task in (*sequence.upstream, *sequence.downstream):
        if told := masked_sentence(task.task, [stage.result for stage in task.stages]):
            console.print(told, markup=False, soft_wrap=True)
    if sequence.downstream:
        _show_transfers(sequence, console)
    for name, value in sequence.summary().items():
        console.print(f"{name}: {value:+.1f}" if "transfer" in name else f"{name}: {value:.1f}")
    console.print()


def _matrix(sequence: SequenceFacts, view: str) -> Table:
    table = Table()
    table.add_column("after learning")
    for task in sequence.upstream:
        table.add_column(task.task, justify="right")
    for i, row in enumerate(sequence.matrix[view]):
        cells = [NOT_MEASURED if (i, j) in sequence.skipped else _number(cell) for j, cell in enumerate(row)]
        table.add_row(sequence.upstream[i].task, *cells)
    return table


def _show_committed(sequence: SequenceFacts, console: Console) -> None:
    """Of a method that trains several forms of a task: which one each task committed, and on what evidence."""
    tasks = [t for t in (*sequence.upstream, *sequence.downstream) if t.form]
    if not tasks:
        return
    table = Table()
    for column in ("task", "experience", "own", "both"):
        table.add_column(column, justify="left" if column == "task" else "right")
    table.add_column("committed")
    for task in tasks:
        chosen = SelectResult.from_json(task.metrics)
        scores = [_number(chosen.scores.get(form.value)) for form in Form]
        table.add_row(task.task, *scores, chosen.in_words())
    _headed(console, "What each task committed: the best of three forms on validation (%)", table)
    grown = sum(t.grew for t in sequence.upstream)
    console.print(f"The bank has {grown} adapter{'s' * (grown != 1)} for {len(sequence.upstream)} tasks.")


def _show_reuse(sequence: SequenceFacts, console: Console) -> None:
    """Mean α per task and adapter: how much of each adapter's output enters, averaged over samples and sites."""
    tasks = [t for t in (*sequence.upstream, *sequence.downstream) if t.reuse()]
    if not tasks:
        return
    columns = list(dict.fromkeys(name for t in tasks for name in t.sees))
    table = Table()
    table.add_column("task")
    for name in columns:
        table.add_column(name, justify="right")
    for task in tasks:
        reuse = task.reuse()
        table.add_row(task.task, *(f"{reuse[name]:.3f}" if name in reuse else "" for name in columns))
    _headed(console, "How much each task takes from each adapter (coefficient α, mean over samples and sites)", table)


def _show_transfers(sequence: SequenceFacts, console: Console) -> None:
    table = Table()
    chooses = any(task.form for task in sequence.downstream)
    stages = () if chooses else ("stage1", "stage2")  # of several forms the table above has the scores
    table.add_column("task")
    for column in (*(f"stage {s[-1]}" for s in stages), "scored", "by chance"):
        table.add_column(column, justify="right")
    for task in sequence.downstream:
        by_stage = {s.stage: s.score for s in task.stages}
        scored = sequence.transfers.get(task.task)
        table.add_row(task.task, *(_number(by_stage.get(s)) for s in stages), _number(scored), f"{task.random_score:.1f}")
    _headed(console, "Transfer: tasks that start from the final bank and stay out of it", table)


def _headed(console: Console, title: str, table: Table) -> None:
    """A title of its own: rich would fold it to the table's width."""
    console.print(f"[bold]{title}[/bold]")
    console.print(table)


def _number(cell: Cell) -> str:
    return "–" if cell is None else f"{cell:.1f}"
