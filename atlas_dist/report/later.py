"""What evaluations of an old task after later ones come to, beside its first (core/recheck.py has their scores)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atlas_dist.core.recheck import proves
from atlas_dist.core.results import EvalResult
from atlas_dist.core.types import View


def fingerprint(later: EvalResult, first: EvalResult) -> str:
    """sha256 of a task's predictions in its own view; that of its first full pass, where `later` proves it on some samples."""
    proved = later.views[View.TASK].of and proves(later, first)
    return (first if proved else later).views[View.TASK].predictions_sha256


def read_again(column: list[EvalResult]) -> tuple[int, int] | None:
    """(samples, of how many) of a task's evaluations, the fewest in any view; None where all were read whole."""
    partly = [(view.samples, view.of) for later in column for view in later.views.values() if view.of]
    return min(partly) if partly else None


def effective_ranks(cells: Mapping[tuple[int, int], EvalResult], count: int) -> tuple[tuple[float | None, ...], ...]:
    """In the latest view. It depends on the number of samples: where a task was later read on some, its first rank is that of its
    own view on the same ones."""
    rows = [[_effective_rank(cells[i, j], View.LATEST) for j in range(i + 1)] for i in range(count)]
    for (i, j), cell in cells.items():
        latest = cell.views.get(View.LATEST)
        if i > j and latest is not None and latest.of and (same := _effective_rank(cell, View.TASK)) is not None:
            rows[j][j] = same
    return tuple(map(tuple, rows))


def _effective_rank(evaluation: EvalResult, view: View) -> float | None:
    found = evaluation.view(view)
    return found.effective_rank if found else None


def token_f1s(cells: Mapping[tuple[int, int], EvalResult], tasks: Sequence[str]) -> dict[str, float]:
    """Task -> token F1 in percent right after it was learnt, of those whose answers are written."""
    learnt = {task: cells[at, at].views.get(View.TASK) for at, task in enumerate(tasks)}
    return {task: view.token_f1 for task, view in learnt.items() if view is not None and view.token_f1 is not None}


def written_sentence(token_f1: Mapping[str, float]) -> str:
    """How written answers are scored, and their token F1; "" where none are written."""
    if not token_f1:
        return ""
    shown = ", ".join(f"{task} {value:.1f} %" for task, value in token_f1.items())
    return f"Written answers are scored by exact match; token F1 right after learning: {shown}."
