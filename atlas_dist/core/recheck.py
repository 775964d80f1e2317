"""What an old task's later evaluations say of it, beside the full pass right after it was learnt.

In the task view the first full pass is a fact: later ones prove it, on a fixed sample where the split is larger than
`sequence.recheck`. The latest view is read on the same sample, and compared with the task view on that sample.
"""

from __future__ import annotations

from atlas_dist.core.results import EvalResult
from atlas_dist.core.types import View


def proves(later: EvalResult, first: EvalResult) -> bool:
    """Whether the task answers as in its first full pass, to the last bit, on every sample that was read."""
    now, then = later.views.get(View.TASK), first.views.get(View.TASK)
    if now is None or then is None:
        return False
    return now.differing == 0 if now.of else now.predictions_sha256 == then.predictions_sha256


def score_in(view: View, later: EvalResult, first: EvalResult) -> float | None:
    """The score in percent in a view; None where it was not read. In the task view that of the first full pass, where `later`
    proves it on some of the samples."""
    found, then = later.view(view), first.views.get(View.TASK)
    if found is None:
        return None
    if then is not None and found.of and found is later.views.get(View.TASK) and proves(later, first):
        return then.score
    return found.score


def before_in(view: View, later: EvalResult, first: EvalResult) -> float | None:
    """The score in percent right after the task was learnt, on the samples that `later` read in a view; None where it is not
    known. What was forgotten is the difference of the two."""
    now, same = later.views.get(view), later.views.get(View.TASK)
    partly = view is not View.TASK and now is not None and same is not None and now.of and same.of
    found = same if partly else first.views.get(View.TASK)
    return found.score if found is not None else None
