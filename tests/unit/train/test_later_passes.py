"""Later passes of an old task: on a fixed sample, compared bit by bit with the first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.result_files import predictions_file
from atlas_dist.core.results import EvalResult
from atlas_dist.core.types import View
from atlas_dist.store import artifacts
from atlas_dist.train.inputs import pack_tensors
from tests.kits.stage import Bench, pack_toys, toy_config

WORDS = ("sequence.upstream=[toy_shape,toy_kin]", "sequence.downstream=[]", "sequence.recheck=20")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Everything but the last pass over the first task, whose split has 48 samples."""
    config = toy_config(tmp_path_factory.mktemp("recheck"), *WORDS)
    pack_toys(config)
    bench = Bench(config)
    bench.learn_until("2 eval toy_shape")
    return bench


def tampered(bench: Bench, change: object) -> CommittedRef:
    """The first pass with other files, as some other version or a disk might have left it."""
    first = bench.done[bench.job("1 eval toy_shape").key]
    tensors = load(artifacts.load(bench.context.store, first, predictions_file(View.TASK)))
    changed = change(tensors)  # type: ignore[operator]
    prefix = f"runs/t/attempts/{first.job}-{abs(hash(str(change)))}"
    result = artifacts.publish(
        bench.context.store,
        prefix,
        job=first.job,
        attempt=prefix.rpartition("/")[2],
        files={predictions_file(View.TASK): pack_tensors(changed)},
        metrics=first.metrics,
    )
    return replace(first, prefix=prefix, blobs=result.blobs)


def late(bench: Bench, first: CommittedRef | None = None) -> EvalResult:
    job = bench.job("2 eval toy_shape")
    assignment = bench.assignment(job)
    if first is not None:
        assignment = replace(assignment, inputs={**assignment.inputs, job.first_from: first})
    assert bench.run(assignment).failure is None
    return EvalResult.from_json(artifacts.read_result(bench.context.store, assignment.prefix).metrics)


def test_a_later_pass_reads_the_sample_and_finds_every_bit_equal(learnt: Bench) -> None:
    now = late(learnt)
    for view in (View.TASK, View.LATEST):
        assert (now.views[view].samples, now.views[view].of) == (20, 48)
    assert now.views[View.TASK].differing == 0
    assert now.views[View.LATEST].differing is None
    assert now.samples_done(0) == 40


def test_one_bit_of_one_sample_is_seen(learnt: Bench) -> None:
    def flip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        bits = tensors["bits"].clone()
        bits[:, 3] ^= 4
        return {**tensors, "bits": bits}

    assert late(learnt, tampered(learnt, flip)).views[View.TASK].differing == 20, "the means are the same all the while"


def test_a_sample_that_only_one_pass_could_read_differs(learnt: Bench) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = tensors["sample"] >= 24
        return {name: values[kept] for name, values in tensors.items()}

    differing = late(learnt, tampered(learnt, drop)).views[View.TASK].differing
    assert differing is not None
    assert 0 < differing < 20


def test_a_first_pass_of_0_1_is_proved_on_all_samples(learnt: Bench) -> None:
    """It left the digest over all and no bits of any sample."""

    def without_bits(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: values for name, values in tensors.items() if name != "bits"}

    first = tampered(learnt, without_bits)
    now, then = late(learnt, first).views, EvalResult.of(first).views[View.TASK]
    assert (now[View.TASK].samples, now[View.TASK].of) == (48, 0)
    assert now[View.TASK].predictions_sha256 == then.predictions_sha256
    assert (now[View.LATEST].samples, now[View.LATEST].of) == (20, 48)
