"""A wrong sample stands alone: whatever it does to a batch, the others get their answers, in their order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from atlas_dist.errors import DataError
from atlas_dist.serve import Prediction, Request
from atlas_dist.serve.apart import answer_apart

ASKED = [Request(task=str(number)) for number in range(8)]


def answered(request: Request) -> Prediction:
    return Prediction(request.task or "", 0, "a", 1.0, (1.0,))


@pytest.mark.parametrize("wrong", [(), (0,), (7,), (3, 4), (0, 2, 4, 6), tuple(range(8))])
def test_the_wrong_ones_fail_and_nobody_else(wrong: tuple[int, ...]) -> None:
    def predict(requests: Sequence[Request]) -> list[Prediction]:
        for request in requests:
            if int(request.task or 0) in wrong:
                raise DataError(f"{request.task} is wrong")
        return [answered(request) for request in requests]

    results = answer_apart(predict, ASKED)
    for number, result in enumerate(results):
        if number in wrong:
            assert isinstance(result, DataError) and result.message == f"{number} is wrong"
        else:
            assert isinstance(result, Prediction) and result.task == str(number)


def test_a_batch_without_a_fault_is_asked_once() -> None:
    sizes = []

    def predict(requests: Sequence[Request]) -> list[Prediction]:
        sizes.append(len(requests))
        return [answered(request) for request in requests]

    answer_apart(predict, ASKED)
    assert sizes == [8]


def test_what_is_too_large_for_the_memory_comes_through_in_parts() -> None:
    def predict(requests: Sequence[Request]) -> list[Prediction]:
        if len(requests) > 3:
            raise MemoryError
        return [answered(request) for request in requests]

    assert [r.task for r in answer_apart(predict, ASKED) if isinstance(r, Prediction)] == [str(n) for n in range(8)]
