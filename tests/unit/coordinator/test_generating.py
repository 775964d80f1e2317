"""What is refused before a run begins whose answers are to be written, with what to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_dist.compose import compose_config
from atlas_dist.coordinator.expand import expand, specification
from atlas_dist.errors import ConfigError
from tests.kits.stage import pack_toys, toy_config

SAY = ("sequence=toy_decoder", "sequence.upstream=[toy_say]", "backbone=random_smolvlm", "method=atlas")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("say")
    pack_toys(toy_config(folder, *SAY), samples=8)
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("backbone=random_tiny",), r"random-tiny \(vilt\) does not write.*architecture idefics3, smolvlm"),
        (("method=atlas_paper",), "its coefficients are drawn from all tokens.*per_sample=false"),
        (("method.settings.per_sample=true",), "its coefficients are drawn from all tokens"),
        (("method=head_only",), "it trains heads only, and they have none.*method=atlas"),
        (("method=experience_replay",), "it keeps or shares the heads of several tasks"),
        (("method=multitask",), "it keeps or shares the heads of several tasks"),
        (("tasks.toy_say.shots=5",), "5 samples a class; written answers have no classes.*shots=0.1"),
        (("tasks.toy_say.max_text=140",), "max_text is 140, and 8 are written; random-smolvlm reads at most 1.. text tokens"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...], told: str, packed: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        expand(toy_config(packed, *SAY, *words))


@pytest.mark.parametrize("method", ["atlas", "individual_adapters", "adapter_fusion", "sequential_finetune"])
def test_other_methods_are_planned_with_the_length_of_answers_in_every_key(method: str, packed: Path) -> None:
    plan, longer = (
        expand(toy_config(packed, *SAY, f"method={method}", *words)) for words in ((), ("tasks.toy_say.max_new_tokens=9",))
    )
    assert {job.task.max_new_tokens for job in plan.jobs.values()} == {8} and not set(plan.jobs) & set(longer.jobs)
    assert {job.task.random_score for job in plan.jobs.values()} == {0.0}


def test_only_answers_that_are_written_have_a_length() -> None:
    words = ("experiment=toy", "train.workers=1")
    with pytest.raises(ConfigError, match="max_new_tokens is 9, but a single task writes nothing"):
        compose_config([*words, "tasks.toy_shape.max_new_tokens=9"])
    assert "max_new_tokens" not in specification(compose_config(list(words)))["tasks"]["toy_shape"]
    assert compose_config([*words, *SAY, "tasks.toy_say.max_new_tokens=null"]).tasks["toy_say"].new_tokens == 16
