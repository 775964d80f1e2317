"""Whole steps of ViLT-B on a GPU: right with padded texts in bf16, repeatable, nothing left to the next job. Each body that can
also runs small on the CPU, so that its own logic is exercised everywhere."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from atlas_dist import device as owner
from atlas_dist.core.types import Budget
from atlas_dist.data.batch import RankBatch
from atlas_dist.train.loop import LoopSettings, train_step
from atlas_dist.train.mixture import OWN
from atlas_dist.train.module import StageModule
from tests.kits.step import SIZES, TWO, PlainEngine, new_feeder, open_model, random_backbone, random_batches

CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]


@pytest.fixture
def deterministic() -> Iterator[None]:
    owner.set_arithmetic(deterministic=True)
    yield
    owner.set_arithmetic()


def loss_and_gradient(device: str, size: str, batch: RankBatch, *, bf16: bool) -> tuple[float, Tensor]:
    """Of one training pass in stage two, the gradient as one vector [parameters] in float64."""
    at, geometry = torch.device(device), SIZES[size]
    backbone = random_backbone(geometry, at, bf16=bf16)
    with torch.no_grad():
        # A fresh ViLT hardly looks at its text. This one does: who sees padding sees something else.
        backbone.embeddings.text_embeddings.word_embeddings.weight[0] = 5.0
        for layer in backbone.encoder.layer:
            layer.attention.attention.value.weight *= 10
    with open_model(backbone, geometry, 2, TWO) as model:
        module = StageModule(model, model.head_spec, bf16=bf16).to(at).train()
        (fed,) = new_feeder(at)(batch)
        losses, _, _, penalty, *_ = module(fed.inputs, fed.target)
        loss = losses.sum() + 0.1 * penalty
        loss.backward()
        gradients = [p.grad.detach().double().cpu().flatten() for p in module.parameters() if p.grad is not None]
    return float(loss), torch.cat(gradients)


def agreement(ours: tuple[float, Tensor], exact: tuple[float, Tensor]) -> tuple[float, float]:
    """Relative error of the loss; sine of the angle between the gradients."""
    cosine = torch.nn.functional.cosine_similarity(ours[1], exact[1], dim=0).clamp(max=1)
    return abs(ours[0] - exact[0]) / abs(exact[0]), float((1 - cosine**2).sqrt())


@pytest.mark.parametrize(
    ("device", "size", "backend"),
    [("cpu", "tiny", None), *(pytest.param("cuda", "vilt-b32", backend, marks=CUDA, id=backend.name) for backend in BACKENDS)],
)
def test_padded_texts_in_bf16_are_fp32_on_a_cpu(device: str, size: str, backend: SDPBackend | None) -> None:
    """Whichever kernel computes attention; one that cannot take a mask is not offered the choice."""
    (batch,) = random_batches(SIZES[size], 4, 1)
    assert 0 < int(batch.attention_mask.sum()) < batch.attention_mask.numel()
    exact = loss_and_gradient("cpu", size, batch, bf16=False)
    with sdpa_kernel([backend, SDPBackend.MATH], set_priority=True) if backend else nullcontext():
        loss, angle = agreement(loss_and_gradient(device, size, batch, bf16=True), exact)
    # A mask that is lost turns the gradient by 0.03 (tiny) and 0.7 (ViLT-B); bf16 itself, on a CPU, by 0.006 and 0.01.
    assert loss < 1e-3
    assert angle < (0.015 if size == "tiny" else 0.05)


@on_each_device
def test_padded_texts_in_fp32_are_the_same_on_every_device(device: str) -> None:
    (batch,) = random_batches(SIZES["tiny"], 4, 1)
    owner.set_arithmetic()
    ours, exact = (loss_and_gradient(at, "tiny", batch, bf16=False) for at in (device, "cpu"))
    loss, angle = agreement(ours, exact)
    assert loss < 1e-5
    assert angle < 1e-4


def test_the_comparison_notices_a_mask_that_is_lost() -> None:
    """Half the padding seen as text, and the tolerances above are passed."""
    (batch,) = random_batches(SIZES["tiny"], 4, 1)
    lost = batch.attention_mask.clone()
    lost[:2] = 1
    wrong = loss_and_gradient("cpu", "tiny", replace(batch, attention_mask=lost), bf16=False)
    loss, angle = agreement(wrong, loss_and_gradient("cpu", "tiny", batch, bf16=False))
    assert loss > 1e-3
    assert angle > 0.02


def learnt(device: str, size: str, steps: int) -> str:
    """sha256 of everything that trained, after so many steps in bf16."""
    at, geometry = torch.device(device), SIZES[size]
    with open_model(random_backbone(geometry, at, bf16=True), geometry, 2, TWO) as model:
        module = StageModule(model, model.head_spec, bf16=True).to(at).train()
        engine, feed = PlainEngine(module, Budget(lr=1e-3), steps), new_feeder(at)
        batches = random_batches(geometry, 8, 2, pinned=at.type == "cuda")
        for step in range(steps):
            train_step(engine, OWN, batches[step % 2], feed, LoopSettings(steps, 1, 1, 0, 8, 1, 0.1))
        digest = hashlib.sha256()
        for parameter in module.parameters():
            digest.update(parameter.detach().float().cpu().numpy().tobytes() if parameter.requires_grad else b"")
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("device", "size", "steps"), [("cpu", "tiny", 5), pytest.param("cuda", "vilt-b32", 50, marks=CUDA)], ids=["cpu", "cuda"]
)
@pytest.mark.usefixtures("deterministic")
def test_a_deterministic_stage_is_repeatable_to_the_last_bit(device: str, size: str, steps: int) -> None:
    assert learnt(device, size, steps) == learnt(device, size, steps)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_ten_jobs_leave_no_memory() -> None:
    left = []
    owner.take(torch.device("cuda"))
    try:
        for _ in range(10):
            learnt("cuda", "tiny", 2)
            owner.release_memory()
            left.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    finally:
        owner.take(None)
    assert left[-1] == left[1]


# ------------------------------------------------------------------------------------------------------------- broken processes

_BROKEN = """
import torch
from atlas_dist.core.types import FailureKind
from atlas_dist.train.worker import failure_of, spoils_the_process
def trouble(action):
    try:
        action()
        torch.cuda.synchronize()
    except Exception as error:
        return error
ones = torch.ones(8, device="cuda")
full = trouble(lambda: torch.empty(1 << 50, dtype=torch.uint8, device="cuda"))
assert isinstance(full, torch.OutOfMemoryError), full
assert trouble(lambda: ones.sum().item()) is None, "memory that was short does not break a device"
hurt = trouble(lambda: ones[torch.tensor([99], device="cuda")].sum().item())
assert hurt is not None and spoils_the_process(hurt) and failure_of(hurt, 0).kind is FailureKind.DEVICE, repr(hurt)
assert trouble(lambda: ones.sum().item()) is not None, "if a device mended itself, no process would have to go"
print("as expected")
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_broken_process_is_told_from_a_full_one() -> None:
    """In a process of its own: this one is to go on."""
    pytest.importorskip("pydantic", reason="the trainer needs it")
    done: Any = subprocess.run([sys.executable, "-c", _BROKEN], capture_output=True, text=True, timeout=300)
    assert "as expected" in done.stdout, done.stderr[-2000:]
    assert float(torch.ones(3, device="cuda").sum()) == 3.0, "the next process has a whole device"
