"""LoRA adapters from plan to bank, without Ray: learnt, weighed by later tasks, exported, and answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_dist.bank.package import export_bank, read_package
from atlas_dist.bank.verify import rescore
from atlas_dist.bank.weights import load_weights
from atlas_dist.core.results import EvalResult
from atlas_dist.core.types import JobKind, View
from atlas_dist.serve.model import AtlasModel
from tests.kits.bank import Toys, toys

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
    answer = model.predict("toy_kin", text="what?", choices=["a", "b"], output_adapter_coefficients=True)
    assert answer.adapter_coefficients is not None
    reads = [bank.learnt[key].name for key in bank.find("toy_kin").view]
    assert list(answer.adapter_coefficients) == reads
    assert all(set(sites) == layers for sites in answer.adapter_coefficients.values())
