"""LoRA adapters from plan to bank, without Ray: learnt, weighed by later tasks, exported, and answered with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from atlas_dist.bank.package import export_bank, read_package
from atlas_dist.bank.peft_folders import PeftContent, export_peft
from atlas_dist.bank.verify import rescore
from atlas_dist.bank.weights import BankWeights, load_weights
from atlas_dist.core.results import EvalResult
from atlas_dist.core.types import JobKind, TaskKind, View
from atlas_dist.errors import ConfigError
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import load_backbone
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.lora import ranks_in
from atlas_dist.serve.model import AtlasModel
from atlas_dist.train.inputs import coefficients_of
from tests.kits.bank import Toys, toys

BATCH = 3
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def learnt() -> Toys:
    return toys(
        "method=atlas",
        "method.settings.adapter=lora",
        "method.settings.rank=4",
        "method.settings.lora_alpha=8",
        "method.settings.target_modules=[query,value]",
        "method.settings.expand=always",
        "train.budget.head_start=random",  # from a fitted head the best of a few toy steps may be the first, where B is zero
        "sequence.upstream=[toy_shape,toy_kin]",
        "sequence.downstream=[]",
    )


def test_a_run_with_lora_keeps_old_answers_and_its_bank_is_what_was_scored(learnt: Toys, tmp_path: Path) -> None:
    prints: dict[str, set[str]] = {}
    for job in learnt.bench.plan.jobs.values():
        if job.kind is JobKind.EVAL:
            view = EvalResult.of(learnt.bench.done[job.key]).views[View.TASK]
            prints.setdefault(job.task.name, set()).add(view.predictions_sha256)
    assert [len(found) for found in prints.values()] == [1, 1]

    bank = learnt.bank
    for entry in bank.learnt.values():
        assert rescore(learnt.config, bank, entry).bitwise
    weights = load_weights(learnt.store, bank)
    layers = {name.split("/")[1] for task in weights.tasks.values() for name in task.adapter}
    assert layers == {f"encoder.layer.{n}.attention.attention.{end}" for n in range(2) for end in ("query", "value")}

    export_bank(learnt.store, bank, weights, tmp_path / "bank")
    model = AtlasModel.from_weights(read_package(tmp_path / "bank"))
    answer = model.predict("toy_kin", text="what?", choices=["a", "b", "c"], output_adapter_coefficients=True)
    assert answer.adapter_coefficients is not None
    reads = [bank.learnt[key].name for key in bank.find("toy_kin").view]
    assert list(answer.adapter_coefficients) == reads
    assert all(set(sites) == layers for sites in answer.adapter_coefficients.values())


def loud(learnt: Toys) -> BankWeights:
    """The bank with every B times 300: after a few steps of toy learning an adapter says too little for a test to see."""
    weights = load_weights(learnt.store, learnt.bank)
    tasks = {
        key: replace(task, adapter={n: 300 * t if n.endswith("lora_B.weight") else t for n, t in task.adapter.items()})
        for key, task in weights.tasks.items()
    }
    return replace(weights, tasks=tasks)


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, 50, (BATCH, 1, 9), generator=generator)
    pixels = torch.randn(BATCH, 1, 3, 64, 64, generator=generator)
    return {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0, "pixel_values": pixels}


def ours(weights: BankWeights, weighed: Sequence[str], own: str, key: str) -> Tensor:
    """Pooled outputs of our own model with some adapters of the bank."""
    backbone, adapters = load_backbone("random-tiny"), [weights.tasks[seen].adapter for seen in weighed]
    model = AdaptedModel(
        backbone.model,
        HeadSpec(TaskKind.SINGLE, 2),
        weights.method().mixing,
        visible=len(adapters),
        grows=bool(own),
        seed=0,
        ranks=[ranks_in(adapter) for adapter in adapters],
    )
    with model, torch.no_grad():
        model.load_adapters(adapters)
        if own:
            model.load_grown(weights.tasks[own].adapter)
        model.load_coefficients(coefficients_of(weights.tasks[key].own) if weighed else {})
        return model.eval().features(batch(), HeadSpec(TaskKind.SINGLE, 2))


def theirs(folder: Path) -> Tensor:
    """The same of PEFT."""
    backbone = load_backbone("random-tiny")
    given = {name: value[:, 0] for name, value in batch().items()}
    with torch.no_grad():
        return PeftModel.from_pretrained(backbone.model, str(folder)).eval()(**given).pooler_output


def test_peft_loads_an_adapter_and_what_a_task_makes_of_several(learnt: Toys, tmp_path: Path) -> None:
    weights = loud(learnt)
    first, second = weights.tasks
    alone = export_peft(weights, tmp_path / "alone", PeftContent.ADAPTER)
    whole = export_peft(weights, tmp_path / "whole", PeftContent.TASK)
    frozen = ours(weights, (), "", first)
    wanted = ours(weights, (), first, first)
    assert (wanted - frozen).abs().max() > 1e-2, "the adapter says something"
    torch.testing.assert_close(theirs(alone["toy_shape"]), wanted, rtol=1e-5, atol=1e-5)
    weighed = [key for key in weights.view(second) if key != second]
    torch.testing.assert_close(theirs(whole["toy_kin"]), ours(weights, weighed, second, second), rtol=1e-5, atol=1e-5)
    config = LoraConfig.from_pretrained(str(alone["toy_shape"]))
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (4, 8, "random-tiny")


def test_a_task_that_weighs_several_is_one_adapter_with_their_ranks_together(learnt: Toys, tmp_path: Path) -> None:
    """Whatever form was committed: here the second task reads the first one's adapter by half."""
    weights = loud(learnt)
    first, second = weights.tasks
    task = weights.tasks[second]
    layers = ranks_in(task.adapter)
    half = {f"coefficients/{path}/start": torch.tensor([0.5]) for path in layers}
    heads = {name: value for name, value in task.own.items() if name.startswith("head/")}
    mixed = replace(task, own={**heads, **half}, learnt=replace(task.learnt, sees=(first,), form="both"))
    weights = replace(weights, tasks={first: weights.tasks[first], second: mixed})
    folder = export_peft(weights, tmp_path / "whole", PeftContent.TASK)["toy_kin"]
    torch.testing.assert_close(theirs(folder), ours(weights, [first], second, second), rtol=1e-5, atol=1e-5)
    assert LoraConfig.from_pretrained(str(folder)).r == 8


def test_bottlenecks_are_no_lora(tmp_path: Path) -> None:
    learnt = toys("sequence.upstream=[toy_shape]", "sequence.downstream=[]")
    with pytest.raises(ConfigError, match="bottlenecks"):
        export_peft(load_weights(learnt.store, learnt.bank), tmp_path / "peft", PeftContent.ADAPTER)
