"""From scores to what a sequence of tasks achieved. Pure arithmetic; all scores in percent (docs/method.md, Evaluation).

`R[i][j]` is the score on task j after learning task i; rows are lists of length i + 1 (tasks not yet learnt have no score). Only
the diagonal and the last row count here; elsewhere None may stand for what was not measured.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import correlation, fmean, pstdev, stdev

Matrix = Sequence[Sequence[float | None]]


def learnt(matrix: Matrix) -> list[float]:
    """The diagonal: each task right after it was learnt.

    >>> learnt([[80.0], [None, 70.0]])
    [80.0, 70.0]
    """
    return [_measured(matrix, i, i) for i in range(len(matrix))]


def final(matrix: Matrix) -> list[float]:
    """The last row: each task after the whole sequence.

    >>> final([[80.0], [60.0, 70.0]])
    [60.0, 70.0]
    """
    return [_measured(matrix, len(matrix) - 1, j) for j in range(len(matrix))]


def _measured(matrix: Matrix, i: int, j: int) -> float:
    cell = matrix[i][j]
    if cell is None:
        raise ValueError(f"task {j} was not scored after task {i}")
    return cell


def average_accuracy(matrix: Matrix) -> float:
    """Mean over tasks of the score after the whole sequence: the mean of the last row.

    >>> average_accuracy([[80.0], [60.0, 70.0]])
    65.0
    """
    return fmean(final(matrix))


def backward_transfer(matrix: Matrix, before: Sequence[float] | None = None) -> float:
    """Mean over the tasks before the last of `R[last][j] - R[j][j]`; negative = forgetting (Lopez-Paz & Ranzato 2017).

    0 for a single task. `before`: each task right after it was learnt, on the samples of the last row; None = the diagonal.

    >>> backward_transfer([[80.0], [60.0, 70.0]])
    -20.0
    """
    pairs = list(zip(final(matrix), learnt(matrix) if before is None else before, strict=True))[:-1]
    return fmean(after - before for after, before in pairs) if pairs else 0.0


def forward_transfer(matrix: Matrix, alone: Sequence[float]) -> float:
    """Mean over the tasks after the first of `R[j][j]` - (the task learnt alone): what the sequence added; 0 for a single task.

    >>> forward_transfer([[80.0], [60.0, 70.0]], [80.0, 65.0])
    5.0
    """
    pairs = list(zip(learnt(matrix), alone, strict=True))[1:]
    return fmean(own - lone for own, lone in pairs) if pairs else 0.0


def forgetting(after_own: float, after_later: float, random: float) -> float:
    """CLiMB's T_F(j <- i) = 100 (S_j after j - S_j after i) / (S_j after j - S_R): the share of what was learnt that is gone.

    0 when nothing above chance was learnt.

    >>> forgetting(80.0, 50.0, 20.0)
    50.0
    """
    learnt = after_own - random
    return 100.0 * (after_own - after_later) / learnt if learnt > 0 else 0.0


def relative_gain(score: float, reference: float, random: float) -> float:
    """100 (S - S_ref) / (S_ref - S_R): CLiMB's upstream transfer T_UK with S_FT, low-shot transfer T_LS with S_LS,PT as
    reference.

    0 when the reference is not above chance.

    >>> relative_gain(70.0, 60.0, 10.0)
    20.0
    """
    room = reference - random
    return 100.0 * (score - reference) / room if room > 0 else 0.0


@dataclass(frozen=True)
class Spread:
    """Several runs of the same thing: their mean, the sample standard deviation (0 for one run), and how many they were."""

    mean: float
    deviation: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.deviation:.1f}" if self.count > 1 else f"{self.mean:.1f}"


def spread(values: Sequence[float]) -> Spread:
    """Over seeds and orders; at least one value.

    >>> str(spread([60.0, 62.0, 64.0])), str(spread([60.0]))
    ('62.0 ± 2.0', '60.0')
    """
    return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))


def order_sensitivity(finals: Sequence[Mapping[str, float]]) -> float:
    """How much a task's final score depends on the order that the tasks came in: the standard deviation over orders, averaged
    over tasks (0 for one order).

    Args:
        finals: for each order, task -> its score after the whole sequence, averaged over seeds. The same tasks in each.

    >>> order_sensitivity([{"a": 80.0, "b": 50.0}, {"a": 60.0, "b": 50.0}])
    5.0
    """
    return fmean(pstdev(final[task] for final in finals) for task in finals[0])


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's ρ of pairs, -1 to 1: the correlation of their ranks, where equal values share the mean of theirs.

    None for fewer than 3 pairs, or where all values of one side are equal.

    >>> rank_correlation([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 40.0, 30.0])
    0.8
    """
    if len(first) < 3 or min(len(set(first)), len(set(second))) < 2:
        return None
    return round(correlation(_ranks(first), _ranks(second)), 12)


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [(bisect_left(order, value) + bisect_right(order, value)) / 2 for value in values]
