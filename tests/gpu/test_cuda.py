"""What must hold on a GPU. Each body also runs on the CPU under another id, so that its own logic is exercised everywhere; the
rest runs where there is a GPU, with torch and transformers alone: `pytest tests/gpu -m gpu`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas_dist import device as owner
from atlas_dist.core.types import Budget
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.layers import AS_THEY_ARE, LayerRuns
from atlas_dist.model.mixing import AdapterGroup
from atlas_dist.model.mixing_spec import MixingSpec, Weighting
from atlas_dist.train.loop import Callbacks, LoopSettings, LoopState, Scores, train, train_step
from atlas_dist.train.mixture import OWN
from atlas_dist.train.module import StageModule
from tests.kits.step import ONE, SIZES, TWO, FixedMixture, PlainEngine, new_feeder, open_model, random_backbone, random_batches
from tests.kits.waits import no_host_sync
from tests.oracle.naive_mixing import NaiveAdapter, naive_site

CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
on_each_device = pytest.mark.parametrize("device", DEVICES)
TINY = SIZES["tiny"]
BATCH, STEPS = 4, 4


# --------------------------------------------------------------------------------------------------------------- the mixing site


@on_each_device
@pytest.mark.parametrize("weighting", list(Weighting))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.bfloat16, 6e-2)], ids=["fp32", "bf16"])
def test_a_site_is_the_oracle(device: str, weighting: Weighting, dtype: torch.dtype, tolerance: float) -> None:
    """Outputs, α and gradients against the per-adapter loops in float64, relative to the largest number of each."""
    generator = torch.Generator().manual_seed(0)
    spec = MixingSpec(rank=8, weighting=weighting, query_rows=3)
    group = AdapterGroup(3, 32, 4, spec, generator)
    x, grad = (torch.randn(2, 9, 32, generator=generator) for _ in range(2))
    exact, twin = group.double(), x.double().requires_grad_()
    adapters = []
    for i in range(3):
        tensors = [p[i].detach().clone() for p in exact.parameters()]
        adapters.append(NaiveAdapter(*tensors[:4], *(rows.view(-1, 32) for rows in tensors[4:])))
    mixed, alphas = naive_site(twin, adapters, heads=4, weighting=weighting.value)
    mixed.backward(grad.double())
    ours = group.to(device, dtype)
    own = x.to(device, dtype).requires_grad_()
    found = ours(own)
    found.mixed.backward(grad.to(device, dtype))
    assert own.grad is not None and twin.grad is not None
    pairs = [(found.mixed, mixed), (own.grad, twin.grad)]
    if weighting is not Weighting.PLAIN:
        pairs.append((found.alpha.flatten(1), torch.stack(alphas, dim=1).flatten(1)))
    for mine, theirs in pairs:
        error = (mine.detach().double().cpu() - theirs.detach()).abs().max() / theirs.detach().abs().max()
        assert float(error) < tolerance


# ----------------------------------------------------------------------------------------------------------------- a whole stage


Stage = tuple[list[float], list[Tensor]]


def stage(device: str, visible: int, roles: Any, runs: LayerRuns = AS_THEY_ARE, micro: int = 0) -> Stage:
    """Train a few steps; the losses and what was learnt."""
    at = torch.device(device)
    with open_model(random_backbone(TINY, at), TINY, visible, roles, runs=runs) as model:
        module = StageModule(model, HeadSpec(model.head_spec.kind, TINY.classes), bf16=False).to(at)
        module.train()
        size = micro or BATCH
        settings = LoopSettings(STEPS, 1, 1, 0, size, BATCH // size, 0.1)
        state = LoopState()
        callbacks = Callbacks(lambda _: False, lambda: nullcontext(Scores(0.0, 0.0, 1)), dict, lambda _: None)
        mixture = FixedMixture(random_batches(TINY, BATCH, 2, pinned=at.type == "cuda"), STEPS)
        engine = PlainEngine(module, Budget(lr=1e-3), STEPS, settings.accumulation)
        train(engine, module, mixture, new_feeder(at), settings, state, callbacks)
        learnt = [p.detach().cpu().clone() for p in module.parameters() if p.requires_grad]
    return [point["loss"] for point in state.curve], learnt


@on_each_device
@pytest.mark.parametrize(("visible", "roles"), [(2, ONE), (2, TWO), (0, TWO)], ids=["stage one", "stage two", "first task"])
def test_a_stage_learns_what_it_learns_on_a_cpu(device: str, visible: int, roles: Any) -> None:
    losses, learnt = stage(device, visible, roles)
    theirs, wanted = stage("cpu", visible, roles)
    assert losses[0] != losses[-1]
    assert losses == pytest.approx(theirs, rel=1e-3)
    for ours, other in zip(learnt, wanted, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-2, atol=1e-3)


@on_each_device
def test_accumulated_passes_learn_the_same(device: str) -> None:
    whole, _ = stage(device, 1, TWO)
    parts, _ = stage(device, 1, TWO, micro=2)
    assert parts == pytest.approx(whole, rel=1e-4)


@on_each_device
@pytest.mark.parametrize("roles", [ONE, TWO], ids=["stage one", "stage two"])
def test_layers_computed_again_learn_the_same(device: str, roles: Any) -> None:
    """Bit for bit on a CPU; a GPU may add up gradients in another order."""
    losses, learnt = stage(device, 2, roles, LayerRuns(recompute=True))
    theirs, wanted = stage(device, 2, roles)
    if device == "cpu":
        assert losses == theirs
        assert all(torch.equal(a, b) for a, b in zip(learnt, wanted, strict=True))
    assert losses == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_layers_learn_nearly_the_same(device: str, recompute: bool) -> None:
    losses, _ = stage(device, 1, TWO, LayerRuns(recompute=recompute, compiled=True))
    theirs, _ = stage(device, 1, TWO)
    assert losses == pytest.approx(theirs, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_layers_computed_again_take_less_memory() -> None:
    size, at, peaks = SIZES["vilt-b32"], torch.device("cuda"), []
    backbone = random_backbone(size, at, bf16=True)
    for recompute in (False, True):
        with open_model(backbone, size, 4, TWO, runs=LayerRuns(recompute=recompute)) as model:
            module = StageModule(model, model.head_spec, bf16=True).to(at).train()
            engine = PlainEngine(module, Budget(), 4)
            (batch,) = random_batches(size, 16, 1, pinned=True)
            torch.cuda.reset_peak_memory_stats()
            train_step(engine, OWN, batch, new_feeder(at), LoopSettings(4, 1, 1, 0, 16, 1, 0.1))
            peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.6 * peaks[0]


# ------------------------------------------------------------------------------------------------------ nobody waits for anybody


class WithoutOptimizer(PlainEngine):
    """Forward and backward alone: Adam counts its steps on the host, which a CPU's dispatcher takes for values."""

    def step(self) -> None:
        self.module.zero_grad(set_to_none=True)


@on_each_device
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True], ids=["remembered", "recomputed"])
@pytest.mark.parametrize(("visible", "roles"), [(3, ONE), (3, TWO), (0, TWO)], ids=["stage one", "stage two", "first task"])
def test_a_step_reads_nothing_back(device: str, bf16: bool, recompute: bool, visible: int, roles: Any) -> None:
    at = torch.device(device)
    with open_model(random_backbone(TINY, at, bf16=bf16), TINY, visible, roles, runs=LayerRuns(recompute=recompute)) as model:
        module = StageModule(model, model.head_spec, bf16=bf16).to(at).train()
        engine = (WithoutOptimizer if device == "cpu" else PlainEngine)(module, Budget(), STEPS)
        settings = LoopSettings(STEPS, 1, STEPS, 0, 2, 2, 0.1)
        feed = new_feeder(at)
        batches = random_batches(TINY, BATCH, 3, pinned=at.type == "cuda")
        train_step(engine, OWN, batches[0], feed, settings)  # the first one may set things up
        with no_host_sync(device):
            for batch in batches[1:]:
                loss, _ = train_step(engine, OWN, batch, feed, settings)
    assert bool(torch.isfinite(loss))


def test_the_guard_notices_a_value_that_is_read() -> None:
    with pytest.raises(AssertionError, match="reads a value back"), no_host_sync("cpu"):
        float(torch.ones(3).sum())


@on_each_device
def test_a_buffer_that_is_filled_again_changes_nothing(device: str) -> None:
    """What was fed stays as it was, though the stream fills its buffers again two batches later."""
    at = torch.device(device)
    feed = new_feeder(at)
    first, second = random_batches(TINY, BATCH, 2, pinned=at.type == "cuda")
    wanted = first.pixels.clone()
    if device == "cuda":
        torch.cuda._sleep(200_000_000)  # the device is busy: a copy that took its turn behind this would come too late
    (fed,) = feed(first)
    list(feed(second))
    first.pixels.zero_()
    expected = wanted.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    torch.testing.assert_close(fed.inputs["pixel_values"].cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_go_beside_the_step() -> None:
    """They are done while the device is still busy with what was asked of it before."""
    feed = new_feeder(torch.device("cuda"))
    (batch,) = random_batches(SIZES["vilt-b32"], 8, 1, pinned=True)
    list(feed(batch))
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    busy = torch.cuda.Event()
    busy.record()
    list(feed(batch))
    assert feed._copied is not None
    feed._copied.synchronize()
    assert not busy.query(), "the step before is not over"


@on_each_device
def test_pixel_buffers_are_pinned_where_there_is_a_gpu(device: str) -> None:
    pytest.importorskip("simplejpeg", reason="decoding needs it")
    from atlas_dist.core.types import TaskKind, TaskSpec
    from atlas_dist.data.batch import StreamLimits
    from atlas_dist.data.collate import Collator

    spec = TaskSpec("t", TaskKind.SINGLE, 3, 8, "t", "train", "val", "", "")
    collator = Collator(spec, lambda texts: (), slots=2, images=1, size=8, limits=StreamLimits())  # type: ignore[arg-type, return-value]
    at = torch.device(device)
    owner.take(at)
    try:
        buffers = [collator._next_buffer() for _ in range(2)]
        assert [buffer.is_pinned() for buffer in buffers] == [at.type == "cuda"] * 2
    finally:
        owner.take(None)
        collator.close()
