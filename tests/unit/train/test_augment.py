"""train/augment.py: varied pictures depend on the seed, the step and the sample, and on nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from atlas_dist.core.types import Augment
from atlas_dist.train.augment import OFTEN, augmented, resolved, uniform
from atlas_dist.train.feed import ModelBatch


def batch(samples: list[int], images: int = 1) -> ModelBatch:
    """One picture a sample, each its own."""
    pixels = torch.stack([torch.randn(images, 3, 16, 16, generator=torch.Generator().manual_seed(n)) for n in samples])
    empty = torch.zeros(len(samples), dtype=torch.long)
    return ModelBatch({"pixel_values": pixels}, empty, torch.ones(len(samples), dtype=torch.bool), torch.tensor(samples))


@pytest.mark.parametrize("kind", [Augment.AFFINE, Augment.AFFINE_FLIP])
def test_a_sample_is_varied_alike_in_any_batch(kind: Augment) -> None:
    whole = augmented(batch([4, 9, 11, 2], images=2), kind, seed=3, step=7).inputs["pixel_values"]
    part = augmented(batch([11, 4], images=2), kind, seed=3, step=7).inputs["pixel_values"]
    torch.testing.assert_close(part, whole[[2, 0]])


def test_steps_seeds_and_images_differ() -> None:
    given = batch([5, 5], images=2)
    given.inputs["pixel_values"][:] = given.inputs["pixel_values"][0, 0]
    first = augmented(given, Augment.AFFINE, seed=1, step=0).inputs["pixel_values"]
    assert not torch.equal(first[0, 0], first[0, 1])
    assert torch.equal(first[0], first[1])
    for seed, step in ((2, 0), (1, 1)):
        assert not torch.equal(augmented(given, Augment.AFFINE, seed, step).inputs["pixel_values"], first)


def test_none_changes_nothing_and_neither_does_a_shared_picture() -> None:
    given = batch([1, 2])
    assert augmented(given, Augment.NONE, 0, 0) is given
    shared = replace(given, inputs={"pixel_values": given.inputs["pixel_values"][:1].expand(2, -1, -1, -1, -1)})
    assert augmented(shared, Augment.AFFINE, 0, 0) is shared


def test_a_blank_picture_stays_blank() -> None:
    given = batch([1, 2, 3])
    blank = replace(given, inputs={"pixel_values": torch.full_like(given.inputs["pixel_values"], 0.7)})
    varied = augmented(blank, Augment.AFFINE, 0, 0).inputs["pixel_values"]
    torch.testing.assert_close(varied, blank.inputs["pixel_values"])


def test_only_the_flipping_kind_mirrors() -> None:
    """A picture that is dark left and bright right stays so, or is turned over for about half of the steps."""
    given = batch([8])
    given.inputs["pixel_values"][:] = torch.linspace(-1, 1, 16)

    def mirrored(kind: Augment) -> float:
        varied = [augmented(given, kind, 0, step).inputs["pixel_values"] for step in range(200)]
        return float(np.mean([float(v[..., 8:].mean()) < float(v[..., :8].mean()) for v in varied]))

    assert mirrored(Augment.AFFINE) == 0.0
    assert 0.35 < mirrored(Augment.AFFINE_FLIP) < 0.65


def test_draws_are_even_and_apart() -> None:
    draws = uniform(12, 5, np.arange(4000), 1)
    assert draws.shape == (4000, 7) and draws.min() >= -1.0 and draws.max() < 1.0
    assert np.abs(draws.mean(0)).max() < 0.05 and np.abs(draws.std(0) - 3**-0.5).max() < 0.02
    assert np.abs(np.corrcoef(draws.T) - np.eye(7)).max() < 0.08


def test_auto_varies_what_is_seen_often_and_a_choice_stands() -> None:
    assert resolved(Augment.AUTO, OFTEN) is Augment.AFFINE
    assert resolved(Augment.AUTO, OFTEN - 0.1) is Augment.NONE
    for kind in (Augment.NONE, Augment.AFFINE, Augment.AFFINE_FLIP):
        assert {resolved(kind, passes) for passes in (0.5, 50.0)} == {kind}
