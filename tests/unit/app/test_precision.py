"""`train.precision=auto`: decided once, recorded, kept; with measurements that are made up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from atlas_dist.app import precision
from atlas_dist.app.composed import ComposedRun, compose_run
from atlas_dist.app.precision import decided, decided_by_nodes
from atlas_dist.calibrate import Speeds
from atlas_dist.errors import ConfigError
from tests.kits.bank import write_ledger
from tests.kits.stage import pack_toys, toy_words

FAST, SLOW = Speeds(2.0, 1.0), Speeds(1.0, 5.0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Speeds], list[bool]]:
    """Makes this machine as fast as it is told; the list says who was tried: the GPU or not."""

    def become(speeds: Speeds) -> list[bool]:
        tried: list[bool] = []

        def answer(*, on_gpu: bool) -> Speeds:
            tried.append(on_gpu)
            return speeds

        monkeypatch.setattr(precision, "_measured_once", answer)
        return tried

    return become


def composed(folder: Path, *words: str) -> ComposedRun:
    return compose_run(*toy_words(folder, "train.precision=auto", *words))


def chosen(run: ComposedRun) -> str:
    return run.config.train.precision.value


def test_what_is_faster_here_is_taken_and_said(tmp_path: Path, machine: Callable[[Speeds], list[bool]]) -> None:
    tried = machine(FAST)
    run, said = decided_by_nodes(composed(tmp_path))
    assert (chosen(run), said) == ("bf16", "train.precision=auto: bf16 (bf16 is 2.0x as fast as fp32).")
    machine(SLOW)
    assert chosen(decided(composed(tmp_path))) == "fp32"
    assert tried == [False]


def test_what_somebody_set_is_not_tried(tmp_path: Path, machine: Callable[[Speeds], list[bool]]) -> None:
    tried = machine(FAST)
    for word in ("fp32", "bf16"):
        run, said = decided_by_nodes(compose_run(*toy_words(tmp_path, f"train.precision={word}")))
        assert (chosen(run), said) == (word, "")
    assert not tried


def test_a_run_keeps_what_it_began_with_on_every_machine(tmp_path: Path, machine: Callable[[Speeds], list[bool]]) -> None:
    tried = machine(FAST)
    begun = composed(tmp_path)
    pack_toys(begun.config, samples=16)
    plan = begun.plan()
    write_ledger(begun.store, begun.config, plan, {}, begun.specification())
    assert begun.specification()["train"]["precision"] == "bf16"
    tried = machine(SLOW)
    again, said = decided_by_nodes(composed(tmp_path))
    assert (chosen(again), said) == ("bf16", "train.precision=auto: bf16, as this run began.")
    assert composed(tmp_path).plan().digest == plan.digest, "and so do its job keys"
    assert composed(tmp_path).specification() == begun.specification()
    assert not tried
    other = composed(tmp_path, "run=another")
    assert chosen(decided(other)) == "fp32", "another run may have another one"
    assert not set(other.plan().jobs) & set(plan.jobs)


def test_what_was_decided_gives_the_keys_of_what_was_set(tmp_path: Path, machine: Callable[[Speeds], list[bool]]) -> None:
    machine(SLOW)
    auto = composed(tmp_path)
    pack_toys(auto.config, samples=16)
    by_hand = compose_run(*toy_words(tmp_path, "train.precision=fp32"))
    assert auto.plan().digest == by_hand.plan().digest
    assert auto.specification() == by_hand.specification()


def test_the_nodes_of_a_cluster_decide_together(
    tmp_path: Path, machine: Callable[[Speeds], list[bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas_dist.coordinator import ray_cluster, ray_probe

    tried, nodes = machine(SLOW), [("a", FAST), ("b", FAST)]

    def no_cluster(*_: Any) -> Any:
        return nullcontext()

    monkeypatch.setattr(ray_cluster, "cluster", no_cluster)
    monkeypatch.setattr(ray_probe, "speeds_of_nodes", lambda _: nodes)
    run, said = decided_by_nodes(composed(tmp_path, "cluster.address=auto"))
    assert chosen(run) == "bf16"
    assert "every node" in said
    nodes.append(("c", SLOW))
    with pytest.raises(ConfigError, match=r"bf16: a .*, b .*; fp32: c "):
        decided_by_nodes(composed(tmp_path, "cluster.address=auto"))
    assert not tried, "whoever starts the run may be another kind of machine"
    looked = decided(composed(tmp_path, "cluster.address=auto", "cluster.gpus_per_worker=1"))
    assert chosen(looked) == "bf16", "to look at a plan nobody starts a cluster"
