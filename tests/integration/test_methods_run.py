"""Every method on the same engine, data and heads, on three drawn tasks; and what defines each in the files that it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from atlas_dist.core.result_files import ADAPTER_FILE, BACKBONE_FILE, MEMORY_FILE, SAMPLES_FILE, TASK_FILE
from atlas_dist.core.types import Stage, View
from atlas_dist.methods import METHODS
from atlas_dist.methods.ewc import IMPORTANCE
from atlas_dist.methods.replay import RESERVOIR
from atlas_dist.store import artifacts
from tests.kits.stage import Bench, pack_toys, toy_config

SHORT = [
    "sequence.upstream=[toy_shape,toy_kin,toy_pair]",
    "sequence.downstream=[]",
    "train.budget.max_steps=4",
    "train.budget.global_batch=16",
    "train.budget.lr=2e-3",
    "train.checkpoint_every=0",
]
SETTINGS = {
    "freeze_bottom_k": ["method.settings.layers=1"],
    "ewc": ["method.settings.fisher_samples=16"],
    "experience_replay": ["method.settings.capacity=24", "method.settings.every=2"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rivals")
    pack_toys(toy_config(path), samples=48)
    return path


_runs: dict[str, Bench] = {}


def learnt(folder: Path, method: str) -> Bench:
    """The method's whole sequence, run once."""
    if method not in _runs:
        bench = Bench(toy_config(folder, f"method={method}", *SHORT, *SETTINGS.get(method, [])))
        for job in bench.plan.jobs.values():
            bench.learn(job)
        _runs[method] = bench
    return _runs[method]


def tensors(bench: Bench, label: str, file: str) -> dict[str, Tensor]:
    """One file of the job whose label ends so."""
    return load(artifacts.load(bench.context.store, bench.done[bench.job(label).key], file))


def files(bench: Bench, label: str) -> set[str]:
    return {blob.name for blob in bench.done[bench.job(label).key].blobs}


def pretrained(bench: Bench) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in bench.context.backbone().model.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_a_sequence_runs_and_what_an_old_task_was_never_changes(folder: Path, method: str) -> None:
    bench = learnt(folder, method)
    (sequence,) = bench.plan.sequences
    for j, task in enumerate(sequence.upstream):
        prints = set()
        for i in range(j, 3):
            views = bench.done[sequence.evaluations[i, j]].metrics["views"]
            assert all(0 <= view["score"] <= 100 for view in views.values())
            prints.add(views["task"]["predictions_sha256"])
        assert len(prints) == 1, f"{task.task}: its own weights are still there, bit for bit"


@pytest.mark.parametrize("method", ["sequential_finetune", "freeze_bottom_k", "ewc", "lwf", "experience_replay"])
def test_a_shared_backbone_is_read_in_its_newest_state(folder: Path, method: str) -> None:
    bench = learnt(folder, method)
    (sequence,) = bench.plan.sequences
    assert sequence.reads is View.LATEST
    views = bench.done[sequence.evaluations[2, 0]].metrics["views"]
    assert views["latest"]["predictions_sha256"] != views["task"]["predictions_sha256"]
    first, second = (tensors(bench, f"{label} stage2", BACKBONE_FILE) for label in ("1 toy_shape", "2 toy_kin"))
    assert set(first) == set(second)
    assert any(not torch.equal(first[n], second[n]) for n in first), "each task leaves a whole set of its own"


def test_the_bottom_stays_as_pretrained_bit_for_bit(folder: Path) -> None:
    """Of two layers the upper one trains: embeddings and layer 0 are in no artifact, and nothing in the artifact is theirs."""
    bench = learnt(folder, "freeze_bottom_k")
    trained = tensors(bench, "3 toy_pair stage2", BACKBONE_FILE)
    everything = pretrained(bench)
    assert {n for n in everything if n.startswith(("embeddings.", "encoder.layer.0."))} == set(everything) - set(trained)
    moved = {n for n in trained if not torch.equal(trained[n], everything[n])}
    assert any(n.startswith("encoder.layer.1.") for n in moved)
    whole = tensors(learnt(folder, "sequential_finetune"), "3 toy_pair stage2", BACKBONE_FILE)
    assert set(whole) == set(everything)
    assert not torch.equal(whole["encoder.layer.0.output.dense.weight"], everything["encoder.layer.0.output.dense.weight"])


def test_ewc_leaves_importance_that_grows_and_only_later_tasks_feel_it(folder: Path) -> None:
    bench = learnt(folder, "ewc")
    first, second = (tensors(bench, f"{label} stage2", MEMORY_FILE) for label in ("1 toy_shape", "2 toy_kin"))
    names = [n for n in first if n.startswith(IMPORTANCE)]
    assert all(bool((first[n] >= 0).all()) for n in names)
    assert all(bool((second[n] >= first[n]).all()) for n in names)
    assert any(bool((second[n] > first[n]).any()) for n in names)
    free = learnt(folder, "sequential_finetune")
    alike = tensors(free, "1 toy_shape stage2", BACKBONE_FILE)
    assert all(torch.equal(alike[n], t) for n, t in tensors(bench, "1 toy_shape stage2", BACKBONE_FILE).items())
    held, loose = (tensors(b, "2 toy_kin stage2", BACKBONE_FILE) for b in (bench, free))
    assert any(not torch.equal(held[n], loose[n]) for n in held)


def test_replay_rehearses_what_its_reservoir_kept_with_the_old_heads(folder: Path) -> None:
    bench = learnt(folder, "experience_replay")
    memory = tensors(bench, "2 toy_kin stage2", MEMORY_FILE)
    assert set(memory) == {RESERVOIR + "toy_shape", RESERVOIR + "toy_kin"}
    assert sum(len(kept) for kept in memory.values()) == 24
    second = bench.done[bench.job("2 toy_kin stage2").key].metrics
    assert second["steps"] == 6, "4 of its own, 2 of rehearsal"
    old = tensors(bench, "1 toy_shape stage2", TASK_FILE)
    now = tensors(bench, "3 toy_pair stage2", TASK_FILE)
    assert not torch.equal(now["guest/toy_shape/head/0.weight"], old["head/0.weight"]), "the old head trains along"
    assert {n.split("/")[1] for n in now if n.startswith("guest/")} == {"toy_shape", "toy_kin"}


def test_lwf_trains_the_old_heads_from_their_own_answers(folder: Path) -> None:
    bench = learnt(folder, "lwf")
    assert MEMORY_FILE not in files(bench, "1 toy_shape stage2")
    old = tensors(bench, "1 toy_shape stage2", TASK_FILE)
    now = tensors(bench, "2 toy_kin stage2", TASK_FILE)
    assert not torch.equal(now["guest/toy_shape/head/0.weight"], old["head/0.weight"])


def test_multitask_learns_all_tasks_in_one_job(folder: Path) -> None:
    bench = learnt(folder, "multitask")
    (sequence,) = bench.plan.sequences
    assert len({jobs.final for jobs in sequence.upstream}) == bench.plan.training_jobs == 1
    metrics = bench.done[sequence.upstream[0].final].metrics
    assert metrics["steps"] == 12
    assert metrics["samples"] == 72, "it is validated on every task"
    heads = {n.split("/")[1] for n in tensors(bench, "all stage2", TASK_FILE) if n.startswith("guest/")}
    assert heads == {"toy_pair", "toy_shape"}


def test_fusion_composes_frozen_adapters_and_is_the_tasks_own(folder: Path) -> None:
    bench = learnt(folder, "adapter_fusion")
    last = bench.job("3 toy_pair stage1")
    assert len(last.bank) == 3, "the task's own adapter is among them"
    task = tensors(bench, "3 toy_pair stage1", TASK_FILE)
    assert any(n.startswith("fusion/") for n in task)
    assert ADAPTER_FILE not in files(bench, "3 toy_pair stage1")
    assert not any(n.startswith("fusion/") for n in tensors(bench, "1 toy_shape stage2", TASK_FILE))


def test_i2i_starts_a_new_adapter_where_the_fusion_ended(folder: Path) -> None:
    bench = learnt(folder, "i2i")
    third = next(t for t in bench.plan.sequences[0].upstream if t.task == "toy_pair")
    stages = [bench.plan.jobs[key] for key in third.stages]
    assert [job.stage.stage for job in stages if job.stage] == [Stage.ONE, Stage.INIT, Stage.TWO]
    assert third.bank == (third.final,), "in the end one plain adapter reads the task"
    begun, ended = (tensors(bench, f"3 toy_pair {s}", ADAPTER_FILE) for s in ("init", "stage2"))
    name = next(n for n in begun if n.endswith("up.weight"))
    assert begun[name].shape == ended[name].shape
    assert float((begun[name] - ended[name]).norm()) < float(begun[name].norm()), "it went on from there"
    fused, distilled = (tensors(bench, f"3 toy_pair {s}", TASK_FILE) for s in ("stage1", "init"))
    assert all(torch.equal(fused[n], distilled[n]) for n in fused), "fusion and head stand still while it is distilled"


def test_stage_one_alone_grows_one_adapter_for_all(folder: Path) -> None:
    bench = Bench(toy_config(folder, "method=atlas_stage_one", *SHORT))
    for job in bench.plan.jobs.values():
        bench.learn(job)
    grown = [key for key, ref in bench.done.items() if any(b.name == ADAPTER_FILE for b in ref.blobs)]
    assert grown == [bench.plan.sequences[0].upstream[0].final]


def test_few_samples_are_the_same_in_every_stage_and_for_the_reference(folder: Path) -> None:
    words = ["sequence.upstream=[toy_shape]", "sequence.downstream=[toy_pair]", "tasks.toy_pair.shots=2"]
    bench = Bench(toy_config(folder, *SHORT[2:], *words, "+method@references.pretrained=head_only"))
    for job in bench.plan.jobs.values():
        bench.learn(job)
    labels = ("transfer toy_pair stage1", "transfer toy_pair stage2", "pretrained toy_pair stage2")
    chosen = [tensors(bench, label, SAMPLES_FILE)["train"].tolist() for label in labels]
    assert chosen[0] == chosen[1] == chosen[2]
    assert len(chosen[0]) == 4, "two of each class"
    assert SAMPLES_FILE not in files(bench, "1 toy_shape stage2")


def test_each_adapter_is_left_out_once_and_breadth_is_measured(folder: Path) -> None:
    bench = learnt(folder, "atlas_paper")
    (sequence,) = bench.plan.sequences
    first, third = (bench.done[sequence.evaluations[i, i]].metrics for i in (0, 2))
    assert "without" not in first, "one adapter alone can't be left out"
    assert len(third["without"]) == 3
    assert all(0 <= score <= 100 for score in third["without"])
    later = bench.done[sequence.evaluations[2, 0]].metrics
    assert "without" not in later, "it is asked once, right after the task was learnt"
    assert all(1 <= view["effective_rank"] <= 32 for view in later["views"].values())
    fused = learnt(folder, "adapter_fusion")
    assert len(fused.done[fused.plan.sequences[0].evaluations[1, 1]].metrics["without"]) == 2
