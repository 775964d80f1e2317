"""From scores to what a sequence of tasks achieved. Pure arithmetic; all scores in percent (METHOD.md, Evaluation).

R[i][j] is the score on task j after learning task i; rows are lists of length i + 1 (tasks not yet learnt have no score).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

Matrix = Sequence[Sequence[float]]


def average_accuracy(matrix: Matrix) -> float:
    """Mean over tasks of the score after the whole sequence: the mean of the last row.

    >>> average_accuracy([[80.0], [60.0, 70.0]])
    65.0
    """
    return fmean(matrix[-1])


def backward_transfer(matrix: Matrix) -> float:
    """Mean over the tasks before the last of R[last][j] - R[j][j]; negative = forgetting (Lopez-Paz & Ranzato 2017, GEM).

    0 for a single task.

    >>> backward_transfer([[80.0], [60.0, 70.0]])
    -20.0
    """
    before = range(len(matrix) - 1)
    return fmean(matrix[-1][j] - matrix[j][j] for j in before) if len(matrix) > 1 else 0.0


def forward_transfer(matrix: Matrix, alone: Sequence[float]) -> float:
    """Mean over the tasks after the first of R[j][j] - (the task learnt alone); what the sequence added (0 for a single task).

    >>> forward_transfer([[80.0], [60.0, 70.0]], [80.0, 65.0])
    5.0
    """
    later = range(1, len(matrix))
    return fmean(matrix[j][j] - alone[j] for j in later) if len(matrix) > 1 else 0.0


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
