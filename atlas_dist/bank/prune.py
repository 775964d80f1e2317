"""Which adapters a bank could do without, under a budget of accuracy: greedy backward elimination by leave-one-out.

α says how much of an adapter enters, not whether it is of use; a score without it does. From all adapters on, each round scores
every bank that has one fewer, over all of its tasks on their validation splits, and leaves out the adapter that costs least, as
long as the budget holds. To be without an adapter means the same as in a run's own leave-one-out: the adapter, its key and every
task's query for it are not there, so the sum over adapters has a term less (and what that term scaled of x goes with it). An
adapter may be left out even of the task that grew it; that task then reads what is left of its view, in the end the bare
backbone.

Nothing of the store is altered. The validation split chooses here, so the scores of a pruned bank are a little too good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from atlas_dist.bank.contents import Bank
from atlas_dist.bank.verify import rescore_weights
from atlas_dist.bank.weights import BankWeights
from atlas_dist.train.context import RankContext

View = tuple[str, ...]
"""Keys of the adapters that a task reads, in bank order."""

Score = Callable[[str, View], float]
"""(key of a task, what it reads) -> its validation score in percent."""

_EPSILON = 1e-9


@dataclass(frozen=True)
class Allowance:
    """Points of accuracy, in percent, that may be lost against the whole bank."""

    mean: float
    """By the average over all tasks."""
    worst: float
    """By any one task."""

    def allows(self, step: Step) -> bool:
        """Whether a bank on the way is still good enough."""
        return step.lost <= self.mean + _EPSILON and step.worst <= self.worst + _EPSILON


@dataclass(frozen=True)
class Step:
    """A bank on the way: what the step left out ("" = nothing yet), what is left, what its tasks score."""

    dropped: str
    kept: View
    size: int
    """Bytes of all tensors that are left."""
    scores: Mapping[str, float]
    """Key of a task -> percent."""
    lost: float
    """Points that the average lost against the whole bank; negative = it gained."""
    worst: float
    """Points that the task which lost most did."""

    @property
    def mean(self) -> float:
        """Average score over tasks, in percent."""
        return fmean(self.scores.values())


@dataclass(frozen=True)
class Pruning:
    """The way from the whole bank to the smallest that the budget allows."""

    allowance: Allowance
    steps: tuple[Step, ...]
    """The whole bank first; each further step leaves out one adapter."""
    refused: Step | None
    """The cheapest step that the budget did not allow; None when every adapter went."""

    @property
    def dropped(self) -> frozenset[str]:
        """Keys of the adapters that were left out."""
        return frozenset(step.dropped for step in self.steps[1:])


def eliminate(
    views: Mapping[str, View],
    size: Callable[[frozenset[str]], int],
    score: Score,
    allowance: Allowance,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Iterator[Step]:
    """Steps of a greedy backward elimination; the last one is not within the budget, unless nothing is left to leave out.

    Args:
        views: task -> the adapters that it reads.
        size: bytes of a bank without these adapters.
        score: called once for each (task, view); equal calls are remembered.
        tell: how many candidates of the round have been scored, of how many.
    """
    known: dict[tuple[str, View], float] = {}

    def scored(dropped: frozenset[str]) -> dict[str, float]:
        found = {}
        for task, view in views.items():
            left = tuple(key for key in view if key not in dropped)
            if (task, left) not in known:
                known[task, left] = score(task, left)
            found[task] = known[task, left]
        return found

    every = tuple(dict.fromkeys(key for view in views.values() for key in view))
    whole = scored(frozenset())

    def step(dropped: frozenset[str], last: str) -> Step:
        scores = scored(dropped)
        losses = [whole[task] - now for task, now in scores.items()]
        kept = tuple(key for key in every if key not in dropped)
        return Step(last, kept, size(dropped), scores, fmean(losses), max(losses))

    dropped: frozenset[str] = frozenset()
    yield step(dropped, "")
    while len(dropped) < len(every):
        candidates = []
        left = [key for key in every if key not in dropped]
        for done, key in enumerate(left):
            candidates.append(step(dropped | {key}, key))
            tell(done + 1, len(left))
        # Of equally cheap ones the one that hurts no single task, then the larger, then the older.
        best = min(candidates, key=lambda c: (not allowance.allows(c), round(c.lost, 9), round(c.worst, 9), c.size))
        yield best
        if not allowance.allows(best):
            return
        dropped = dropped | {best.dropped}


@dataclass
class Scorer:
    """Scores views of a bank's tasks; those that the run itself has recorded are taken from its ledger."""

    context: RankContext
    weights: BankWeights
    recorded: Mapping[tuple[str, View], float]
    tell: Callable[[str, View], None] = lambda task, view: None
    evaluated: int = 0
    reused: int = 0

    def __call__(self, task: str, view: View) -> float:
        if (task, view) in self.recorded:
            self.reused += 1
            return self.recorded[task, view]
        self.evaluated += 1
        self.tell(task, view)
        return rescore_weights(self.context, self.weights, task, view)


def recorded_scores(bank: Bank) -> dict[tuple[str, View], float]:
    """What a run's evaluations say of whole views and of views without one adapter."""
    found: dict[tuple[str, View], float] = {}
    for key, learnt in bank.learnt.items():
        evaluation = bank.evaluation_of(key)
        if evaluation is None:
            continue
        found[key, learnt.view] = evaluation.score
        if len(evaluation.without) == len(learnt.view):
            for left_out, score in zip(learnt.view, evaluation.without, strict=True):
                found[key, tuple(seen for seen in learnt.view if seen != left_out)] = score
    return found


def prune(
    weights: BankWeights, allowance: Allowance, score: Score, tell: Callable[[Step], None], count: Callable[[int, int], None]
) -> Pruning:
    """Eliminate adapters of a bank; `tell` hears of each step, `count` of each candidate of a round."""
    steps: list[Step] = []
    views = {key: weights.view(key) for key in weights.tasks}
    for step in eliminate(views, lambda dropped: weights.without(dropped, {}).size, score, allowance, count):
        steps.append(step)
        tell(step)
    if allowance.allows(steps[-1]):
        return Pruning(allowance, tuple(steps), None)
    return Pruning(allowance, tuple(steps[:-1]), steps[-1])


def as_record(pruning: Pruning, weights: BankWeights, scorer: Scorer) -> dict[str, Any]:
    """`prune.json`: where it comes from, what was left out, and the whole curve, by names."""
    names = {key: weights.name_of(key) for key in (*weights.tasks, *weights.imported)}

    def told(step: Step) -> dict[str, Any]:
        return {
            "dropped": names.get(step.dropped, ""),
            "kept": [names[key] for key in step.kept],
            "adapters": len(step.kept),
            "bytes": step.size,
            "mean": step.mean,
            "lost": step.lost,
            "worst": step.worst,
            "scores": {names[key]: score for key, score in step.scores.items()},
        }

    return {
        "format": "atlas-dist pruning 1",
        "run": weights.run,
        "keys": {name: key for key, name in names.items()},
        "budget": {"mean": pruning.allowance.mean, "worst": pruning.allowance.worst},
        "dropped": [names[step.dropped] for step in pruning.steps[1:]],
        "steps": [told(step) for step in pruning.steps],
        "refused": told(pruning.refused) if pruning.refused else None,
        "evaluations": {"made": scorer.evaluated, "taken_from_the_ledger": scorer.reused},
    }
