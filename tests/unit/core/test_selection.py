"""What a task commits: the best form on validation, and an adapter of its own only where it pays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_dist.core.selection import Evidence, Expand, Form, paired_bootstrap, select

RULE = {"expand": Expand.EVIDENCE, "epsilon": 0.5, "epsilon_loss": 0.02, "confidence": 0.9}
binary = st.lists(st.booleans(), min_size=1, max_size=60)


def hits(right: int, of: int, loss: float | None = None) -> Evidence:
    """`right` of so many samples are right; the loss is the share of wrong ones, unless told."""
    scores = np.array([1.0] * right + [0.0] * (of - right))
    return Evidence(scores, np.full(of, 1 - right / of if loss is None else loss))


def test_an_adapter_that_pays_is_committed() -> None:
    found = select({Form.EXPERIENCE: hits(50, 100), Form.OWN: hits(60, 100), Form.BOTH: hits(80, 100)}, **RULE)
    assert found.form is Form.BOTH
    assert found.scores == {Form.EXPERIENCE: 50.0, Form.OWN: 60.0, Form.BOTH: 80.0}
    assert found.samples == 100
    assert found.gain is not None
    assert found.gain.mean == pytest.approx(30.0)
    assert 0 < found.gain.low < 30 < found.gain.high
    assert found.gain.confidence > 0.99


def test_an_adapter_that_does_not_pay_is_declined() -> None:
    found = select({Form.EXPERIENCE: hits(80, 100), Form.OWN: hits(60, 100), Form.BOTH: hits(79, 100)}, **RULE)
    assert found.form is Form.EXPERIENCE
    assert found.gain is not None and found.gain.mean == pytest.approx(-1.0)


def test_equal_scores_do_not_grow_the_bank() -> None:
    assert (
        select({Form.EXPERIENCE: hits(80, 100), Form.OWN: hits(80, 100), Form.BOTH: hits(80, 100)}, **RULE).form
        is Form.EXPERIENCE
    )


def test_of_two_equal_adapters_the_one_that_stands_alone_is_taken() -> None:
    assert select({Form.EXPERIENCE: hits(10, 100), Form.OWN: hits(80, 100), Form.BOTH: hits(80, 100)}, **RULE).form is Form.OWN


@pytest.mark.parametrize(
    ("own", "both", "kept"),
    [
        (hits(55, 100, 0.9), hits(55, 100, 0.8), Form.BOTH),
        (hits(55, 100, 0.8), hits(57, 100, 0.9), Form.BOTH),  # its loss is larger, as of whatever trains for longer
        (hits(57, 100, 0.9), hits(55, 100, 0.8), Form.BOTH),
        (hits(57, 100, 0.8), hits(55, 100, 0.9), Form.OWN),
        (hits(90, 100, 0.9), hits(55, 100, 0.8), Form.OWN),  # surely better by the score
    ],
)
def test_an_adapter_apart_must_be_better_in_both_respects_or_surely(own: Evidence, both: Evidence, kept: Form) -> None:
    forms = {Form.OWN: Evidence(own.scores[::-1], own.losses), Form.BOTH: both}  # they are right of other samples
    assert select(forms, **RULE).form is kept


def test_the_first_task_has_only_itself() -> None:
    found = select({Form.OWN: hits(7, 10)}, **RULE)
    assert (found.form, found.gain) == (Form.OWN, None)


def test_always_growing_takes_the_best_form_with_an_adapter() -> None:
    scores = {Form.EXPERIENCE: hits(90, 100), Form.OWN: hits(60, 100), Form.BOTH: hits(70, 100)}
    assert select(scores, **{**RULE, "expand": Expand.ALWAYS}).form is Form.BOTH


@pytest.mark.parametrize(
    ("right", "loss", "kept"),
    [
        (21, 1.2, Form.OWN),
        (21, 1.8, Form.OWN),  # more right, and surer of what is wrong: they disagree, and nothing is given up
        (20, 1.2, Form.OWN),
        (20, 1.49, Form.EXPERIENCE),  # less than epsilon_loss
        (20, 1.8, Form.EXPERIENCE),
        (19, 1.2, Form.OWN),
        (19, 1.8, Form.EXPERIENCE),
    ],
)
def test_where_the_score_cannot_tell_growth_is_declined_only_if_score_and_loss_agree(right: int, loss: float, kept: Form) -> None:
    """One sample of forty is no evidence; they are right of other samples."""
    own = hits(right, 40, loss)
    forms = {Form.EXPERIENCE: hits(20, 40, 1.5), Form.OWN: Evidence(own.scores[::-1], own.losses)}
    assert select(forms, **RULE).form is kept


@pytest.mark.parametrize(("loss", "kept"), [(1.0, Form.BOTH), (1.49, Form.EXPERIENCE), (2.0, Form.EXPERIENCE)])
@pytest.mark.parametrize("right", [0, 25, 40])
def test_scores_that_are_alike_sample_by_sample_leave_it_to_the_loss(right: int, loss: float, kept: Form) -> None:
    """As of answers that are never right to the letter yet, and of tasks that every form has learnt."""
    assert select({Form.EXPERIENCE: hits(right, 40, 1.5), Form.BOTH: hits(right, 40, loss)}, **RULE).form is kept


@pytest.mark.parametrize(
    ("right", "kept"),
    [
        (20, Form.EXPERIENCE),  # a loss of 1.2 in place of 1.5 is a longer training on the same data
        (21, Form.EXPERIENCE),  # one sample of forty proves nothing
        (39, Form.OWN),
    ],
)
def test_on_data_that_the_bank_knows_growing_has_to_be_proved(right: int, kept: Form) -> None:
    own = hits(right, 40, 1.2)
    forms = {Form.EXPERIENCE: hits(20, 40, 1.5), Form.OWN: Evidence(own.scores[::-1], own.losses)}
    assert select(forms, familiar=True, **RULE).form is kept
    assert select(forms, familiar=False, **RULE).form is Form.OWN
    assert select(forms, familiar=True, **{**RULE, "expand": Expand.ALWAYS}).form is Form.OWN


@pytest.mark.parametrize("familiar", [True, False])
def test_scores_that_say_nothing_leave_it_to_the_loss_on_any_data(familiar: bool) -> None:
    forms = {Form.EXPERIENCE: hits(0, 40, 5.0), Form.BOTH: hits(0, 40, 2.0)}
    assert select(forms, familiar=familiar, **RULE).form is Form.BOTH


def test_where_scores_can_tell_the_loss_is_not_asked() -> None:
    apart = {Form.EXPERIENCE: hits(400, 1000, loss=1.0), Form.OWN: hits(700, 1000, loss=2.0)}
    assert select(apart, **RULE).form is Form.OWN
    assert (
        select({Form.EXPERIENCE: hits(700, 1000, loss=2.0), Form.OWN: hits(400, 1000, loss=1.0)}, **RULE).form is Form.EXPERIENCE
    )


def test_a_gain_below_epsilon_does_not_pay_however_sure_it_is() -> None:
    forms = {Form.EXPERIENCE: hits(90_000, 100_000), Form.OWN: hits(90_200, 100_000)}
    found = select(forms, **RULE)
    assert found.form is Form.EXPERIENCE
    assert found.gain is not None and found.gain.low > 0


def test_graded_scores_count_by_their_worth() -> None:
    one, other = np.array([0.3, 0.6, 0.9]), np.array([0.6, 0.9, 1.0])
    found = select({Form.EXPERIENCE: Evidence(one, 1 - one), Form.BOTH: Evidence(other, 1 - other)}, **RULE)
    assert found.form is Form.BOTH
    assert found.scores[Form.BOTH] == pytest.approx(250 / 3)
    assert found.losses[Form.EXPERIENCE] == pytest.approx(0.4)


@settings(deadline=None, max_examples=50)
@given(binary, st.randoms())
def test_the_bootstrap_is_antisymmetric_and_holds_the_mean(ours: list[bool], random: object) -> None:
    a = np.array(ours, dtype=float)
    b = np.array(ours, dtype=float)
    random.shuffle(b)  # type: ignore[attr-defined]
    there, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert there.mean == pytest.approx(-back.mean)
    assert there.low - 1e-9 <= there.mean <= there.high + 1e-9
    assert there.confidence + back.confidence == pytest.approx(1.0, abs=0.05)


def test_the_histogram_is_the_bootstrap() -> None:
    """Against resampling the samples themselves."""
    generator = np.random.default_rng(5)
    ours, theirs = generator.integers(0, 2, 40).astype(float), generator.integers(0, 2, 40).astype(float)
    found = paired_bootstrap(ours, theirs, above=2.0)
    rows = generator.integers(0, 40, (10_000, 40))
    means = 100 * (ours - theirs)[rows].mean(axis=1)
    assert found.confidence == pytest.approx(np.mean(means > 2.0) + 0.5 * np.mean(np.isclose(means, 2.0)), abs=0.03)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=2.6)
