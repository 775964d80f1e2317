"""A test split: evaluations score it, and nothing else ever looks at it."""

from __future__ import annotations

from pathlib import Path

from atlas_dist.core.results import EvalResult, TrainResult
from atlas_dist.core.types import View
from tests.kits.stage import Bench, pack_toys, toy_config

WORDS = ("method=head_only", "sequence.upstream=[toy_shape]", "sequence.downstream=[]", "tasks.toy_shape.data.test=test")


def test_training_is_judged_on_validation_and_an_evaluation_scores_the_test_split(tmp_path: Path) -> None:
    config = toy_config(tmp_path, *WORDS)
    pack_toys(config, samples=64)
    bench = Bench(config)
    trained, scored = (bench.learn(bench.job(label)) for label in ("1 toy_shape stage2", "1 eval toy_shape"))
    assert TrainResult.of(trained).samples == 32, "half as many as to learn from: the validation split"
    assert EvalResult.of(scored).views[View.TASK].samples == 16, "a quarter: the test split"
    assert bench.job("1 eval toy_shape").task.scored == "test"
