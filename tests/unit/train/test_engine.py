"""Small parts of the trainer that are pure: the schedule, validation points, micro batches, what a failure is called."""

from __future__ import annotations

import doctest
import importlib
import json
import pickle
import sys

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from atlas_dist.core.attempts import FailureKind
from atlas_dist.core.types import Budget
from atlas_dist.errors import AuthError, ConfigError, DataError, ExpiredCredentials, OutOfMemory, Paused, StoreError
from atlas_dist.train import engine, feed
from atlas_dist.train.feed import Feeder, micro_batch_for
from atlas_dist.train.loop import LoopSettings, NonFiniteLoss
from atlas_dist.train.worker import failure_of, spoils_the_process


@pytest.mark.parametrize("module", [engine, feed])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@given(st.integers(1, 5000), st.floats(0, 0.9))
def test_the_rate_rises_falls_and_ends_at_zero(total: int, warmup: float) -> None:
    factors = [engine.learning_rate_factor(step, total, warmup) for step in range(total + 1)]
    peak = int(total * warmup)
    assert all(0 <= f <= 1 for f in factors)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == 0.0


@given(st.integers(1, 500), st.integers(1, 40))
def test_validations_are_spread_and_the_last_is_at_the_end(total: int, count: int) -> None:
    steps = LoopSettings(total, count, 1, 0, 1, 1, 0.0).validation_steps()
    assert max(steps) == total
    assert min(steps) >= 1
    assert len(steps) == min(total, count)


@given(st.integers(1, 512), st.integers(0, 600))
def test_micro_batches_are_as_large_as_was_wanted_or_nearly(slots: int, wanted: int) -> None:
    size = micro_batch_for(slots, wanted)
    most = min(wanted or slots, slots)
    assert most <= 2 * size <= 2 * most


def test_pixels_are_normalised_on_the_device_and_shared_ones_stay_shared() -> None:
    from atlas_dist.data.batch import RankBatch

    image = torch.randint(0, 256, (1, 1, 4, 4, 3), dtype=torch.uint8)
    ids = torch.zeros(6, 1, 3, dtype=torch.int64)
    batch = RankBatch(
        ids,
        ids,
        ids,
        image.expand(6, -1, -1, -1, -1),
        torch.zeros(6),
        None,
        torch.ones(6, dtype=torch.bool),
        ids[:, 0, 0],
        6,
        0,
        0,
    )
    parts = list(Feeder((0.5, 0.4, 0.3), (0.5, 0.2, 0.1), torch.device("cpu"))(batch, 2))
    assert len(parts) == 3
    pixels = parts[0].inputs["pixel_values"]
    assert pixels.shape == (2, 1, 3, 4, 4)
    assert pixels.stride(0) == 0
    expected = (image[0, 0].permute(2, 0, 1) / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.5, 0.2, 0.1]
    ).view(3, 1, 1)
    torch.testing.assert_close(pixels[1, 0], expected)


@pytest.mark.parametrize(
    ("error", "kind", "step"),
    [
        (NonFiniteLoss(7), FailureKind.NONFINITE, 7),
        (Paused("x"), FailureKind.PREEMPTED, 3),
        (StoreError("x"), FailureKind.STORE, 3),
        (DataError("x"), FailureKind.FATAL, 3),
        (AuthError("x"), FailureKind.FATAL, 3),
        (ExpiredCredentials("x"), FailureKind.STORE, 3),
        (ConfigError("x"), FailureKind.FATAL, 3),
        (RuntimeError("x"), FailureKind.POISON, 3),
        (OutOfMemory("A step", 8, "x", smaller=True), FailureKind.MEMORY, 3),
        (OutOfMemory("A step", 1, "x", smaller=True), FailureKind.POISON, 3),
        (OutOfMemory("An evaluation", 64, "x", smaller=False), FailureKind.POISON, 3),
        (torch.OutOfMemoryError("CUDA out of memory."), FailureKind.DEVICE, 3),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), FailureKind.DEVICE, 3),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), FailureKind.DEVICE, 3),
        (dist.DistBackendError("NCCL communicator was aborted"), FailureKind.DEVICE, 3),
        (RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"), FailureKind.PREEMPTED, 3),
    ],
)
def test_a_failure_is_called_by_its_retry_rule(error: Exception, kind: FailureKind, step: int) -> None:
    assert (failure_of(error, 3).kind, failure_of(error, 3).step) == (kind, step)
    gone = kind is FailureKind.PREEMPTED and not isinstance(error, Paused)
    assert spoils_the_process(error) == (kind is FailureKind.DEVICE or gone), "a CUDA error stays for the life of its process"


def test_what_does_not_fit_says_which_setting_to_lower() -> None:
    error = pickle.loads(pickle.dumps(OutOfMemory("A training step", 8, "Tried to allocate 2 GiB", smaller=True)))
    assert isinstance(error, OutOfMemory) and error.samples == 8 and error.exit_code == 5
    assert "train.micro_batch" in str(error) and "train.activation_checkpointing=true" in str(error)
    assert "train.eval_batch" in str(OutOfMemory("An evaluation", 64, "x", smaller=False))


def test_deepspeed_is_told_not_to_time_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its timer waits for the device at each pass and each step."""
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    settings = engine.EngineSettings(0, 4, 2, Budget(), 10)
    assert engine._deepspeed_config(settings)["timers"]["throughput"]["enabled"] is False


def test_a_package_that_nobody_asked_for_is_kept_out_and_may_come_later() -> None:
    sys.modules.pop("this", None)
    with engine._without("this"), pytest.raises(ImportError):
        importlib.import_module("this")
    assert "this" not in sys.modules
    with engine._without("json"):
        assert importlib.import_module("json") is json, "what is here already stays"
