"""`atlas-dist search`: settings of one task's stage, by rounds of successive halving."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from atlas_dist.app.show import standard_console

if TYPE_CHECKING:
    from atlas_dist.app.search import SearchResult


def show_search(
    overrides: list[str] | None, *, task: str, stage: int, trials: int, factor: int, rounds: int, seed: int, dry: bool
) -> None:
    """Try, halve, and print what was best; `dry`: only what would be tried. Raises whatever ended a rung."""
    from atlas_dist.app.search import first_rung, search

    words, out = overrides or [], standard_console()
    if dry:
        plan = first_rung(*words, task=task, stage=stage, trials=trials, factor=factor, rounds=rounds, seed=seed)
        out.print(f"the first rung: {len(plan.jobs)} jobs, {plan.training_jobs} train")
        return
    _print(search(*words, task=task, stage=stage, trials=trials, factor=factor, rounds=rounds, seed=seed), out)


def _print(result: SearchResult, out: Console) -> None:
    shares = sorted({share for trial in result.trials.values() for share in trial.scores})
    table = Table()
    for heading in ("candidate", *(f"after {share:.0%}" for share in shares)):
        table.add_column(heading, justify="left" if heading == "candidate" else "right")
    for name, trial in result.trials.items():
        table.add_row(name, *(f"{trial.scores[s]:.1f}" if s in trial.scores else "" for s in shares))
    out.print(f"[bold]Validation score (%) of {result.task} {result.stage.value}[/bold]")
    out.print(table)
    out.print(f"best    {' '.join(f'{key}={value}' for key, value in result.best.items())}", markup=False, soft_wrap=True)
    out.print(f"table   {result.table}", markup=False, soft_wrap=True)
