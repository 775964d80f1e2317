"""One rank doing whole jobs on real shards: what trains, what stays, what resumes bit for bit, and what a failure is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from atlas_dist.core.attempts import FailureKind
from atlas_dist.core.result_files import ADAPTER_FILE, TASK_FILE, VALIDATION_FILE
from atlas_dist.core.types import Stage
from atlas_dist.store import artifacts
from atlas_dist.store.curves import TRAIN, VALIDATION, CurveReader
from atlas_dist.train.loop import StepProgress
from tests.kits.stage import Bench, pack_toys, toy_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toys")
    pack_toys(toy_config(path))
    return path


@pytest.fixture(scope="module")
def learnt(folder: Path) -> Bench:
    """Every job of the toy run, done once."""
    bench = Bench(toy_config(folder))
    for job in bench.plan.jobs.values():
        bench.learn(job)
    return bench


def hashes(ref: object) -> dict[str, str]:
    return {b.name: b.sha256 for b in ref.blobs}  # type: ignore[attr-defined]


def test_every_kind_of_task_trains_and_is_scored(learnt: Bench) -> None:
    for key, job in learnt.plan.jobs.items():
        metrics = learnt.done[key].metrics
        scores = [metrics["score"]] if job.stage else [v["score"] for v in metrics["views"].values()]
        assert all(0 <= s <= 100 for s in scores)
        if job.stage:
            assert metrics["samples"] == 48, "every validation sample counts once, masked slots not at all"


def test_the_first_task_leaves_one_adapter_and_no_stage_one(learnt: Bench) -> None:
    first = next(iter(learnt.plan.jobs.values()))
    assert first.stage is not None
    assert first.stage.stage is Stage.TWO
    files = hashes(learnt.done[first.key])
    assert set(files) == {ADAPTER_FILE, TASK_FILE, VALIDATION_FILE, "adapter_config.json", "details.json"}


def test_stage_one_trains_queries_and_head_and_leaves_no_adapter(learnt: Bench) -> None:
    job = learnt.job("toy_ask stage1")
    assert ADAPTER_FILE not in hashes(learnt.done[job.key])
    task = load(artifacts.load(learnt.context.store, learnt.done[job.key], TASK_FILE))
    before = load(artifacts.load(learnt.context.store, learnt.done[job.queries_from], TASK_FILE))
    queries = {n: t for n, t in task.items() if n.startswith("queries/")}
    assert {t.shape[0] for t in queries.values()} == {2}
    assert any(not torch.equal(t, before[n]) for n, t in queries.items()), "they start from the last task's and move"


def test_stage_two_keeps_stage_ones_queries_and_adds_one(learnt: Bench) -> None:
    one, two = learnt.job("toy_ask stage1"), learnt.job("toy_ask stage2")
    before = load(artifacts.load(learnt.context.store, learnt.done[one.key], TASK_FILE))
    after = load(artifacts.load(learnt.context.store, learnt.done[two.key], TASK_FILE))
    for name, rows in before.items():
        if name.startswith("queries/"):
            assert torch.equal(after[name][:2], rows)
            assert after[name].shape[0] == 3


def test_the_task_view_of_an_old_task_never_changes_by_one_bit(learnt: Bench) -> None:
    prints = {
        label: learnt.done[learnt.job(label).key].metrics["views"]["task"]["predictions_sha256"]
        for label in ("1 eval toy_shape", "2 eval toy_shape", "3 eval toy_shape", "2 eval toy_kin", "3 eval toy_kin")
    }
    assert prints["1 eval toy_shape"] == prints["2 eval toy_shape"] == prints["3 eval toy_shape"]
    assert prints["2 eval toy_kin"] == prints["3 eval toy_kin"] != prints["3 eval toy_shape"]
    late = learnt.done[learnt.job("3 eval toy_shape").key].metrics["views"]["latest"]["predictions_sha256"]
    assert late != prints["3 eval toy_shape"], "the latest view is another model"


def test_the_same_job_gives_the_same_bytes(learnt: Bench) -> None:
    job = learnt.job("toy_kin stage2")
    again = learnt.assignment(job)
    assert learnt.run(again).failure is None
    result = artifacts.read_result(learnt.context.store, again.prefix)
    assert {b.name: b.sha256 for b in result.blobs} == hashes(learnt.done[job.key])


@pytest.mark.parametrize("accumulate", [0, 8], ids=["whole", "accumulated"])
def test_a_resumed_stage_equals_the_uninterrupted_one_bit_for_bit(folder: Path, learnt: Bench, accumulate: int) -> None:
    bench = Bench(toy_config(folder, f"train.micro_batch={accumulate}"))
    bench.done = dict(learnt.done)
    job = bench.job("toy_kin stage2")
    whole = bench.assignment(job)
    assert bench.run(whole).failure is None
    first = bench.assignment(job)
    stopped = bench.run(first, lambda progress: progress.step >= 4)
    assert stopped.failure is not None
    assert (stopped.failure.kind, stopped.failure.step) == (FailureKind.PREEMPTED, 4)
    found = artifacts.newest_checkpoint(bench.context.store, [first.prefix])
    assert found is not None
    seen: list[StepProgress] = []
    second = bench.assignment(job, resume_from=found.prefix, resume_digest=found.digest)
    assert bench.run(second, lambda p: bool(seen.append(p))).failure is None
    assert [p.step for p in seen] == [6, 8], "only the steps that were missing were done"
    files = [artifacts.read_result(bench.context.store, a.prefix).blobs for a in (whole, second)]
    assert files[0] == files[1], "adapters, queries, head, curves and statistics: every byte"
    told = [CurveReader(bench.context.store).points(a.prefix) for a in (whole, first, second)]
    steps = [[(p.split, p.step) for p in points] for points in told]
    assert steps[0] == [(TRAIN, 2), (TRAIN, 4), (VALIDATION, 4), (TRAIN, 6), (TRAIN, 8), (VALIDATION, 8)]
    assert steps[1] == steps[0][:3], "a stage that is stopped has told what it did"
    assert steps[2] == steps[0], "the one that goes on has the whole history, each step once"
    assert [p.values["loss"] for p in told[2]] == [p.values["loss"] for p in told[0]]
    assert set(told[2][0].values) == {"loss", "score", "lr", "samples_per_s", "data_wait", "workers"}


def test_a_loss_that_is_not_finite_names_its_step(folder: Path, learnt: Bench) -> None:
    bench = Bench(toy_config(folder, "train.stage2.lr=1e30"))
    outcome = bench.run(bench.assignment(next(iter(bench.plan.jobs.values()))))
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.NONFINITE
    assert 1 <= outcome.failure.step <= 8


def test_a_damaged_adapter_is_refused_and_fatal(learnt: Bench) -> None:
    job = learnt.job("toy_kin stage1")
    ref = learnt.done[job.bank[0]]
    key = f"{ref.prefix}/{ADAPTER_FILE}"
    data = learnt.context.store.get(key)
    learnt.context.store.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    try:
        outcome = learnt.run(learnt.assignment(job))
    finally:
        learnt.context.store.put(key, data)
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.FATAL
    assert "sha256" in outcome.failure.reason


def test_a_corrupt_shard_is_named_and_nothing_is_trained_on_it(tmp_path: Path) -> None:
    pack_toys(toy_config(tmp_path), samples=32)
    bench = Bench(toy_config(tmp_path))
    (shard,) = (tmp_path / "shards/toy_shape/train").glob("*.tar")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assignment = bench.assignment(bench.job("toy_shape stage2"))
    outcome = bench.run(assignment)
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.FATAL, "another try would read the same bytes"
    assert shard.name in outcome.failure.reason
    assert "checksum" in outcome.failure.reason
    assert not list(bench.context.store.list(f"{assignment.prefix}/{ADAPTER_FILE}"))


def test_bfloat16_products_train_too(folder: Path) -> None:
    bench = Bench(toy_config(folder, "train.precision=bf16"))
    first = next(iter(bench.plan.jobs.values()))
    ref = bench.learn(first)
    tensors = load(artifacts.load(bench.context.store, ref, ADAPTER_FILE))
    assert all(t.dtype is torch.float32 for t in tensors.values()), "what is learnt is kept in float32"


@pytest.mark.parametrize("method", ["head_only", "individual_adapters"])
def test_the_baselines_run_on_the_same_engine(folder: Path, method: str) -> None:
    bench = Bench(toy_config(folder, f"method={method}", "sequence.upstream=[toy_shape,toy_kin]", "sequence.downstream=[]"))
    for job in bench.plan.jobs.values():
        bench.learn(job)
    last = bench.done[bench.job("2 eval toy_kin").key].metrics["views"]
    assert set(last) == {"task"}
