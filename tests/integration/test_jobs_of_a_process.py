"""What one job leaves to the next one of the same process: no memory, no broken device, no half-done batch."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from atlas_dist import device
from atlas_dist.core.attempts import FailureKind
from atlas_dist.core.result_files import ADAPTER_FILE
from atlas_dist.store import artifacts
from atlas_dist.train import learn, loop
from atlas_dist.train.worker import GroupBroken
from tests.kits.stage import Bench, pack_toys, toy_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    pack_toys(toy_config(folder))
    return folder


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    return Bench(toy_config(folder, "train.budget.max_steps=3"))


def first(bench: Bench) -> Any:
    """The first job that trains."""
    return bench.learn_until(next(job.label for job in bench.plan.jobs.values() if job.stage))


@pytest.mark.parametrize("method", ["atlas", "sequential_finetune"])
def test_a_job_leaves_nothing_of_itself(folder: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Model, engine and optimizer refer to each other: three of three jobs stayed until the collector happened to come, which
    knows nothing of a device that is full."""
    bench = Bench(toy_config(folder, "train.budget.max_steps=3", f"method={method}"))
    left: list[weakref.ref[Any]] = []

    def build(module: Any, *args: Any) -> Any:
        engine = build_engine(module, *args)
        left.extend(weakref.ref(each) for each in (module, engine, engine.optimizer))
        left.extend(weakref.ref(p) for p in module.parameters() if p.requires_grad)
        return engine

    build_engine = learn.build_engine
    collect = gc.collect

    def ours_only(generation: int = 2) -> int:
        """DeepSpeed collects now and then, where it happens to; nobody should count on that."""
        return collect(generation) if sys._getframe(1).f_globals["__name__"] == device.__name__ else 0

    monkeypatch.setattr(learn, "build_engine", build)
    monkeypatch.setattr(gc, "collect", ours_only)
    gc.disable()
    try:
        job = first(bench)
        for _ in range(3):
            assert bench.run(bench.assignment(job)).failure is None
        alive = sum(ref() is not None for ref in left)  # before the collector may come by itself
    finally:
        gc.enable()
    assert len(left) > 9
    assert alive == 0


def test_the_engine_has_what_trains_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or DeepSpeed sends a frozen backbone to every rank at the start of a job, and goes over it in every step."""
    seen: list[bool] = []

    def build(module: Any, *args: Any) -> Any:
        engine = build_engine(module, *args)
        trained = {id(p) for p in module.parameters() if p.requires_grad}
        seen.append({id(p) for p in engine.module.parameters()} == trained and 0 < len(trained) < len(list(module.parameters())))
        return engine

    build_engine = learn.build_engine
    monkeypatch.setattr(learn, "build_engine", build)
    assert bench.run(bench.assignment(first(bench))).failure is None
    assert seen == [True]


def test_nothing_waits_for_the_device_in_a_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's throughput timer did, four times a step."""
    from deepspeed.accelerator import get_accelerator

    waits: list[int] = []
    monkeypatch.setattr(type(get_accelerator()), "synchronize", lambda *_: waits.append(1))
    steps = loop.train_step

    def step(*args: Any) -> Any:
        before = len(waits)
        result = steps(*args)
        counted.append(len(waits) - before)
        return result

    counted: list[int] = []
    monkeypatch.setattr(loop, "train_step", step)
    assert bench.run(bench.assignment(first(bench))).failure is None
    assert counted == [0] * 3


def test_what_does_not_fit_is_learnt_in_halves(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device for which more than a quarter of the batch is too much: after two failures the same job, the same result."""
    job = first(bench)
    whole = bench.learn(job)
    passes, sizes = loop._passes, []
    room = job.budget.global_batch // 4

    def small_device(engine: Any, head: Any, parts: Any, settings: Any, scale: float, device: Any) -> Any:
        sizes.append(settings.micro_batch)
        if settings.micro_batch > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
        return passes(engine, head, parts, settings, scale, device)

    monkeypatch.setattr(loop, "_passes", small_device)
    for halvings in (0, 1):
        failure = bench.run(bench.assignment(job, halvings=halvings)).failure
        assert failure is not None and failure.kind is FailureKind.MEMORY
        assert "train.micro_batch" in failure.reason and "activation_checkpointing" in failure.reason
    assignment = bench.assignment(job, halvings=2)
    assert bench.run(assignment).failure is None
    assert sizes == [4 * room, 2 * room, room, room, room]
    halves = artifacts.read_result(bench.context.store, assignment.prefix)
    assert halves.job == whole.job, "no other job: its key does not know of micro batches"
    ours, theirs = (load(artifacts.load(bench.context.store, ref, ADAPTER_FILE)) for ref in (bench.commit(assignment), whole))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "error",
    [torch.AcceleratorError("CUDA error: device-side assert triggered"), torch.distributed.DistBackendError("NCCL aborted")],
)
def test_a_process_with_a_broken_device_takes_no_other_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It struck every rank alike, and there is only one; the next job would fail as well."""

    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(loop, "_passes", fails)
    with pytest.raises(GroupBroken) as broken:
        bench.run(bench.assignment(first(bench)))
    assert broken.value.failure.kind is FailureKind.DEVICE
