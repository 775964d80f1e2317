"""Two-tower backbones on the toy sequence as a user runs it: Ray, two DeepSpeed workers, ledger, report. ViLT has test_run.py,
the decoder test_generate_run.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_dist.core.records import Commit, Fail
from tests.kits.run import Running, left_by
from tests.kits.stage import pack_toys, toy_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("backbone", ["random_clip", "random_siglip"])
def test_a_sequence_ends_and_old_answers_stay_equal(tmp_path: Path, backbone: str) -> None:
    chosen = (f"backbone={backbone}", "method=atlas", "method.settings.rank=4")
    pack_toys(toy_config(tmp_path, *chosen), samples=96)
    words = ["experiment=toy", *chosen, "train.budget.max_steps=4"]
    words += [f"store.url={tmp_path}/store", f"shards.url={tmp_path}/shards", f"report={tmp_path}/report"]
    run = Running(words, tmp_path / "run.txt")
    run.ends_with(0)
    assert "bitwise equal after every later task" in run.text()
    left = left_by(words)
    committed = [e.record.job for e in left.entries if isinstance(e.record, Commit)]
    assert sorted(committed) == sorted(left.plan.jobs) and not [e for e in left.entries if isinstance(e.record, Fail)]
    (sequence,) = left.facts.sequences
    assert len(sequence.upstream) > 1 and sequence.changed_predictions() == []
