"""Optuna, and nowhere else: where to look next, given how earlier candidates of a search did.

Optuna is only asked. It keeps nothing: its study is made anew from facts each time, so a search that was interrupted is told the
same and answers the same (with the same version of Optuna).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from atlas_dist.core.search import Space, Trial

_STEPS = 1_000_000
"""Of a whole stage: Optuna counts in whole steps, rungs are shares."""
_TRIES = 8
"""Times more than needed that Optuna is asked, when it names what was tried before."""


def propose(spaces: Sequence[Space], told: Sequence[Trial], count: int, seed: int) -> list[dict[str, str]]:
    """At most `count` candidates that nobody has tried, key -> value; fewer where the spaces hold no more.

    The sampler is Optuna's tree-structured Parzen estimator over all spaces together (Bergstra et al. 2011; Falkner et al. 2018
    for its use with rungs): a candidate that a rung left behind ranks below all that went further, among its like by its score.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    axes = {space.key: _axis(space) for space in spaces}
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, multivariate=True, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials([_told(trial, spaces, axes) for trial in told])
    known = {tuple(trial.candidate.items()) for trial in told}
    found: list[dict[str, str]] = []
    for _ in range(_TRIES * count):
        params = study.ask(axes).params
        candidate = {space.key: space.written(params[space.key]) for space in spaces}
        if (pairs := tuple(candidate.items())) not in known:
            known.add(pairs)
            found.append(candidate)
        if len(found) == count:
            break
    return found


def _axis(space: Space) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.kind == "choice":
        return CategoricalDistribution(space.choices)
    if space.kind == "int":
        return IntDistribution(int(space.low), int(space.high))
    return FloatDistribution(space.low, space.high, log=space.kind == "log")


def _told(trial: Trial, spaces: Sequence[Space], axes: Mapping[str, Any]) -> Any:
    from optuna.trial import TrialState, create_trial

    params = {space.key: space.read(trial.candidate[space.key]) for space in spaces}
    share, score = trial.furthest
    if share == 1.0:
        return create_trial(params=params, distributions=dict(axes), value=score)
    steps = {round(share * _STEPS): score for share, score in trial.scores.items()}
    return create_trial(state=TrialState.PRUNED, params=params, distributions=dict(axes), intermediate_values=steps)
