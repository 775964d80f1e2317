"""Does α say which adapters help? It is compared with what a task loses without each of them."""

from __future__ import annotations

from atlas_dist.core.metrics import rank_correlation
from atlas_dist.report.facts import SequenceFacts


def lost_without(sequence: SequenceFacts) -> dict[str, dict[str, float]]:
    """task -> adapter -> how many points of score the task loses without it; tasks that were not scored so are left out."""
    tasks = {task.task: task for task in (*sequence.upstream, *sequence.downstream)}
    whole = {task.task: sequence.matrix["task"][i][i] for i, task in enumerate(sequence.upstream)} | dict(sequence.transfers)
    return {
        name: dict(zip(tasks[name].adapters, (own - score for score in scores), strict=False))
        for name, scores in sequence.without.items()
        if name in tasks and (own := whole.get(name)) is not None
    }


def agreement(sequence: SequenceFacts) -> str:
    """A sentence on the rank correlation of α and what leaving an adapter out costs, over all pairs of a task and an earlier
    task's adapter (its own has no α to learn); "" with too few pairs."""
    tasks = {task.task: task for task in (*sequence.upstream, *sequence.downstream)}
    pairs = [
        (abs(alpha), lost[adapter])
        for name, lost in lost_without(sequence).items()
        for adapter, alpha in tasks[name].reuse().items()
        if adapter != name and adapter in lost
    ]
    found = rank_correlation([alpha for alpha, _ in pairs], [points for _, points in pairs])
    if found is None:
        return ""
    return f"Rank correlation of the size of α and the points lost without the adapter: {found:.2f} ({len(pairs)} pairs)."
