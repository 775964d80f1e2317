"""A decoder learns a task whose answers it writes, as a user runs it: Ray, two DeepSpeed workers, ledger, report."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_dist.core.records import Commit, Fail
from tests.kits.run import Running, left_by
from tests.kits.stage import pack_toys, toy_config

pytestmark = [pytest.mark.ray, pytest.mark.timeout(7200)]

DECODER = ("sequence=toy_decoder", "backbone=random_smolvlm", "method=atlas", "method.settings.rank=4")


def test_a_decoder_learns_its_tasks_on_two_workers_and_the_report_says_how_near_its_answers_are(tmp_path: Path) -> None:
    pack_toys(toy_config(tmp_path, *DECODER), samples=96)
    words = ["experiment=toy", *DECODER, "sequence.upstream=[toy_say,toy_kin]", "train.budget.max_steps=4"]
    words += [f"store.url={tmp_path}/store", f"shards.url={tmp_path}/shards", f"report={tmp_path}/report"]
    run = Running(words, tmp_path / "run.txt")
    run.ends_with(0)
    assert "bitwise equal after every later task" in run.text()
    assert "token F1 right after learning: toy_say" in run.text()
    assert "token F1 right after learning: toy_say" in (tmp_path / "report/index.html").read_text()
    left = left_by(words)
    committed = [e.record.job for e in left.entries if isinstance(e.record, Commit)]
    assert sorted(committed) == sorted(left.plan.jobs) and not [e for e in left.entries if isinstance(e.record, Fail)]
    (sequence,) = left.facts.sequences
    assert sequence.changed_predictions() == [] and set(sequence.token_f1) == {"toy_say"}
