"""Signatures: similarity and retrieval, and whether one sample belongs to a task."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_dist.core.signature import (
    Density,
    Form,
    Parts,
    Signature,
    TaskProfile,
    choose,
    distances,
    fit,
    log_likelihoods,
    nearest,
    similarity,
)

PICTURES = Form(1, 0, 0)
seeds = st.integers(0, 2**32 - 1)


def signature(seed: int, width: int = 5) -> Signature:
    rng = np.random.default_rng(seed)
    return Signature(rng.normal(size=width), rng.uniform(0.1, 2, width))


def samples(seed: int, count: int = 64, width: int = 8, away: float = 0.0) -> np.ndarray:
    """Of one task: correlated, of unequal scales; another seed is another task."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(3, width))
    return away + rng.normal(size=(count, 3)) @ mixing + rng.uniform(0.1, 1, width) * rng.normal(size=(count, width))


def profile(rows: np.ndarray, form: Form = PICTURES, images: int = 1, choices: int = 0) -> TaskProfile:
    return TaskProfile(fit(rows), form, images, choices)


@given(seeds, seeds)
def test_similarity_is_symmetric_one_for_the_same_and_between_0_and_1(one: int, other: int) -> None:
    a, b = signature(one), signature(other)
    assert similarity(a, b) == similarity(b, a)
    assert 0 <= similarity(a, b) <= 1
    assert similarity(a, a) == 1


@given(st.lists(seeds, min_size=1, max_size=8, unique=True), st.integers(0, 9))
def test_the_nearest_are_the_most_similar_in_the_banks_order(known: list[int], count: int) -> None:
    bank = {str(seed): signature(seed) for seed in known}
    found, chosen = nearest(signature(1), bank, count)
    assert list(found) == list(bank)
    assert len(chosen) == (min(count, len(bank)) if count else len(bank))
    assert list(chosen) == [key for key in bank if key in chosen]
    left = [found[key] for key in bank if key not in chosen]
    assert min(found[key] for key in chosen) >= max(left, default=0)


@settings(max_examples=30)
@given(seeds)
def test_a_density_equals_the_gaussian_with_the_whole_covariance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    density = Density(rng.normal(size=6), rng.uniform(0.1, 2, 6), rng.normal(size=(2, 6)), 6.0, 2.0)
    rows = rng.normal(size=(5, 6))
    covariance = np.diag(density.noise) + density.loadings.T @ density.loadings
    centred = rows - density.mean
    squared = np.einsum("np,pq,nq->n", centred, np.linalg.inv(covariance), centred)
    np.testing.assert_allclose(distances(density, rows) * 6, squared, rtol=1e-6)
    determinant = np.linalg.slogdet(covariance)[1]
    np.testing.assert_allclose(log_likelihoods(density, rows), -0.5 * (squared + determinant), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 80), st.integers(1, 12))
def test_any_number_of_samples_gives_a_density(seed: int, count: int, width: int) -> None:
    density = fit(samples(seed, count, width))
    assert np.all(density.noise > 0)
    assert np.isfinite(distances(density, samples(seed, 3, width))).all()
    assert np.isfinite([density.freedom, density.limit]).all()
    assert density.limit >= 1


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(-5, 5), st.floats(0.1, 10))
def test_distances_do_not_depend_on_where_features_lie_and_how_large_they_are(seed: int, shift: float, scale: float) -> None:
    rows = samples(seed)
    here, there = fit(rows), fit(rows * scale + shift)
    np.testing.assert_allclose(distances(there, rows * scale + shift), distances(here, rows), rtol=1e-3)


def test_equal_samples_let_in_themselves_and_nothing_else() -> None:
    rows = np.ones((16, 4))
    density = fit(rows)
    assert distances(density, rows).max() <= density.limit < distances(density, rows + 0.1).min()


def test_no_sample_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        fit(np.empty((0, 4)))


def test_unseen_samples_of_a_task_find_it_and_few_are_refused() -> None:
    drawn = {name: samples(seed, 600) for name, seed in (("a", 1), ("b", 2), ("c", 3))}
    bank = {name: profile(rows[:400]) for name, rows in drawn.items()}
    for name, rows in drawn.items():
        choices = choose(bank, dict.fromkeys(bank, rows[400:]))
        best = [choice.best for choice in choices]
        assert np.mean([candidate is not None and candidate.task == name for candidate in best]) > 0.9
        assert np.mean([choice.refused for choice in choices]) < 0.03


def test_what_is_unlike_everything_is_refused_and_the_nearest_are_named_first() -> None:
    bank = {"a": profile(samples(1)), "b": profile(samples(2, away=3))}
    (choice,) = choose(bank, dict.fromkeys(bank, samples(1, 1) + 1e4))
    assert choice.refused
    assert {candidate.task for candidate in choice.candidates} == {"a", "b"}
    assert choice.best == choice.candidates[0]
    assert all(candidate.distance > candidate.limit for candidate in choice.candidates)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_probabilities_sum_to_one_most_probable_first(seed: int) -> None:
    bank = {str(n): profile(samples(n)) for n in range(3)}
    for choice in choose(bank, dict.fromkeys(bank, samples(seed, 4))):
        shares = [candidate.probability for candidate in choice.candidates]
        assert sum(shares) == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)


def test_the_same_task_twice_is_a_toss_up() -> None:
    bank = {"a": profile(samples(1)), "again": profile(samples(1))}
    (choice,) = choose(bank, dict.fromkeys(bank, samples(1, 1)))
    assert [candidate.probability for candidate in choice.candidates] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("form", "images", "choices", "takes"),
    [
        (Form(1, 0, 0), 1, 0, Parts(1, 0, False, False)),  # a picture
        (Form(1, 1, 0), 1, 0, Parts(1, 0, True, False)),  # a picture and a text
        (Form(0, 1, 0), 1, 0, Parts(0, 0, True, False)),  # a text
        (Form(1, 1, 0), 2, 0, Parts(2, 0, True, False)),  # two pictures and a text
        (Form(0, 1, 1), 1, 3, Parts(0, 3, True, True)),  # a text and three to choose from
    ],
)
def test_kinds_of_samples_rule_tasks_out(form: Form, images: int, choices: int, takes: Parts) -> None:
    task = profile(samples(1), form, images, choices)
    asked = [
        Parts(pictures, count, texted, paired)
        for pictures in (0, 1, 2)
        for count in (0, 2, 3)
        for texted in (False, True)
        for paired in (False, True)
    ]
    assert [parts for parts in asked if task.fits(parts)] == [takes]


def test_a_task_whose_samples_differ_in_kind_takes_them_all() -> None:
    mixed = profile(samples(1), Form(0.5, 0.5, 0.0))
    assert mixed.fits(Parts(0, 0, True, False)) and mixed.fits(Parts(1, 0, False, False))
