"""Signatures: which earlier tasks look like a new one, from what samples look like to the frozen backbone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from atlas_dist.core.signature import Signature, nearest, similarity

vectors = arrays(np.float64, 3, elements=st.floats(-50, 50))
spreads = arrays(np.float64, 3, elements=st.floats(0.01, 10))
signatures = st.builds(Signature, vectors, spreads)


def at(value: float) -> Signature:
    return Signature(np.full(3, value), np.ones(3))


@given(signatures, signatures)
def test_similarity_is_symmetric_between_0_and_1_and_1_to_itself(one: Signature, other: Signature) -> None:
    assert similarity(one, other) == pytest.approx(similarity(other, one))
    assert 0 <= similarity(one, other) <= 1
    assert similarity(one, one) == 1.0


def test_a_feature_that_never_varies_does_not_decide_alone() -> None:
    flat = Signature(np.zeros(3), np.array([1.0, 1.0, 0.0]))
    assert np.isfinite(similarity(flat, flat)) and similarity(flat, flat) == 1.0


def test_the_nearest_are_chosen_and_stay_in_the_order_of_the_bank() -> None:
    bank = {"a": at(5.0), "b": at(0.1), "c": at(9.0), "d": at(0.2)}
    found, chosen = nearest(at(0.0), bank, 2)
    assert chosen == ("b", "d")
    assert list(found) == ["a", "b", "c", "d"]
    assert found["b"] > found["d"] > found["a"] > found["c"]


def test_none_asked_for_means_all_and_an_empty_bank_has_none() -> None:
    assert nearest(at(0.0), {"a": at(1.0), "b": at(2.0)}, 0)[1] == ("a", "b")
    assert nearest(at(0.0), {}, 4) == ({}, ())


def test_of_equally_similar_tasks_the_later_learnt_is_nearer() -> None:
    assert nearest(at(0.0), {"a": at(1.0), "b": at(1.0), "c": at(1.0)}, 2)[1] == ("b", "c")
