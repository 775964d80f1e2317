"""What is measured of features and of α, on cases whose answer is known."""

from __future__ import annotations

import doctest
import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from atlas_dist.train import effective_rank as effective_rank_module
from atlas_dist.train import mixture
from atlas_dist.train.effective_rank import EffectiveRankMeter, effective_rank
from atlas_dist.train.engine import join_alone
from atlas_dist.train.mixture import Mixture, Source, interleaved
from atlas_dist.train.reuse import BINS, ReuseMeter


@pytest.fixture(autouse=True)
def alone() -> None:
    join_alone()


@pytest.mark.parametrize("module", [effective_rank_module, mixture])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**30))
def test_rank_of_orthogonal_directions_is_their_number(count: int, seed: int) -> None:
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    rows = rotation[:count]
    assert effective_rank(rows.t() @ rows) == pytest.approx(count)
    assert effective_rank(rows.t() @ rows * 7) == pytest.approx(count), "how many samples there are does not matter"


def test_rank_of_an_uneven_pair_by_hand() -> None:
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(entropy))
    assert effective_rank(torch.zeros(3, 3)) == 0.0


def test_the_meter_counts_each_sample_once_and_masked_slots_not_at_all() -> None:
    model = SimpleNamespace(head=nn.Linear(3, 2))
    features = torch.tensor([[2.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 5.0]])
    meter = EffectiveRankMeter()
    with meter.attached(model):  # type: ignore[arg-type]
        model.head(features)
        meter.observe(torch.tensor([0, 1, -1, -1]), torch.zeros(4, 2))
        model.head(features)
        meter.observe(torch.tensor([7, -1]), torch.zeros(2, 2))  # two passes a sample: directions 1 and 2 once more
    assert meter.effective_rank() == pytest.approx(2.0)
    assert not model.head._forward_pre_hooks


def test_alpha_that_never_varies_has_no_entropy_and_an_even_one_has_the_most() -> None:
    even = (torch.arange(BINS) + 0.5) / BINS
    alpha = torch.stack([torch.full((BINS,), 0.3), even, torch.where(even < 0.5, 0.0, 1.0)], dim=1)
    meter = ReuseMeter(SimpleNamespace(alpha_report=lambda: {"L0": alpha}), torch.device("cpu"))  # type: ignore[arg-type]
    meter.observe(torch.arange(BINS), torch.zeros(BINS, 1))
    found = meter.summary()["L0"]
    assert found["entropy"] == pytest.approx([0.0, math.log(BINS), math.log(2)])
    assert found["mean"] == pytest.approx([0.3, 0.5, 0.5])
    assert found["std"][0] == pytest.approx(0.0, abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_every_source_gets_its_steps_evenly_spread(counts: list[int]) -> None:
    turns = interleaved(counts)
    assert [turns.count(source) for source in range(len(counts))] == counts
    for source, count in enumerate(counts):
        for end in range(len(turns) + 1):
            assert abs(turns[:end].count(source) - count * end / max(1, len(turns))) <= len(counts)


class CountedStream:
    """Yields (name, step) for batches."""

    def __init__(self, name: str) -> None:
        self.name = name

    def epochs_from(self, start: int, stop: int) -> Iterator[tuple[str, int]]:
        return iter([(self.name, step) for step in range(start, stop)])


@settings(deadline=None)
@given(st.integers(0, 30))
def test_a_resumed_mixture_goes_on_where_it_stopped(start: int) -> None:
    def made() -> Mixture:
        sources = [Source(-1, CountedStream("own"), 20), Source(0, CountedStream("a"), 7), Source(2, CountedStream("b"), 3)]  # type: ignore[arg-type]
        return Mixture(sources)

    whole = list(made().steps(0))
    assert len(whole) == len(made()) == 30
    assert list(made().steps(start)) == whole[start:]


def test_the_second_moment_does_not_depend_on_how_samples_are_batched() -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))

    def rank(sizes: list[int]) -> float:
        model, meter = SimpleNamespace(head=nn.Identity()), EffectiveRankMeter()
        with meter.attached(model):  # type: ignore[arg-type]
            for part in features.split(sizes):
                seen: Tensor = model.head(part)
                meter.observe(torch.arange(len(part)), seen)
        return meter.effective_rank()

    assert rank([12]) == pytest.approx(rank([5, 5, 2]))
