"""A batch in which one sample is wrong: the others get their answers all the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from atlas_dist.serve.model import Prediction, Request

Predict = Callable[[Sequence[Request]], Sequence[Prediction]]


def answer_apart(predict: Predict, requests: Sequence[Request]) -> list[Prediction | Exception]:
    """What each request gets, in their order: an answer, or the error that it alone brings about.

    A batch that fails is halved until the wrong ones stand alone. Nearly all that can be wrong shows before the forward pass, so
    that the halves cost little; and a batch that is too large for the device's memory comes through in parts.
    """
    try:
        return list(predict(requests))
    except Exception as error:  # also what nobody foresaw: the neighbours have done nothing
        if len(requests) == 1:
            return [error]
    half = len(requests) // 2
    return [*answer_apart(predict, requests[:half]), *answer_apart(predict, requests[half:])]
