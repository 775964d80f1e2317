"""Results as they are written and read: the names in JSON are those of 0.1, and whatever a ledger says can be read."""

import json
import math
from dataclasses import replace

import pytest

from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.keys import canonical_json
from atlas_dist.core.results import EvalResult, SelectResult, StageSeconds, TrainResult, ViewResult, result_of, without_hosts
from atlas_dist.core.selection import Difference
from atlas_dist.core.types import View

TRAIN = {
    "bad_samples": [{"key": "3", "reason": "truncated", "shard": "000000.tar"}],
    "best_step": 4,
    "bytes_read": 1689600,
    "environment": {"atlas-dist": "0.1.0", "device": "cpu"},
    "like": {"batch": 32, "kind": "train", "precision": "fp32", "stage": "stage1", "task": "toy_pair", "trunk": "random-tiny"},
    "loss": 0.7632511791307479,
    "mfu": None,
    "nodes": ["a", "b"],
    "peak_rss_mb": 659,
    "resumed_at": 0,
    "samples": 128,
    "score": 41.40625,
    "seconds": {
        "checkpointing": 0.013,
        "setup": 0.127,
        "stepping": 1.02,
        "training": 1.642,
        "validating": 0.321,
        "waiting": 0.042,
    },
    "steps": 8,
    "trained_parameters": 9218,
    "world": 2,
}
EVAL = {
    "like": {"batch": 128, "kind": "eval", "precision": "fp32", "stage": "", "task": "toy_kin", "trunk": "random-tiny"},
    "model_from": "0979ead8f93f2094e737f26a4bc87094",
    "nodes": ["vm"],
    "seconds": {"scoring": 0.281},
    "views": {"task": {"effective_rank": 1.000007, "loss": 1.0986, "predictions_sha256": "54", "samples": 128, "score": 17.1875}},
    "without": [13.28125, 17.96875],
    "world": 2,
}


@pytest.mark.parametrize(("kind", "stored"), [(TrainResult, TRAIN), (EvalResult, EVAL)])
def test_what_0_1_wrote_is_written_again_to_the_byte(kind, stored):
    assert canonical_json(kind.from_json(stored).to_json()) == canonical_json(stored)


def test_a_written_result_names_every_field_of_0_1_even_where_it_is_empty():
    assert set(TrainResult(score=1.0, loss=0.5).to_json()) == set(TRAIN) - {"nodes", "like"}
    assert set(EvalResult().to_json()) == set(EVAL) - {"nodes", "like", "without"}


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"score": None},
        {"score": "high", "seconds": 3, "views": [], "nodes": "a", "without": {}, "world": 2.5, "gain": 1},
        {"views": {"task": None, "sideways": {"score": 1.0}}},
        {"seconds": {"training": "long", "lunch": 3.0}, "bad_samples": [1]},
    ],
)
def test_nothing_in_a_ledger_is_fatal(stored):
    for kind in (TrainResult, EvalResult, SelectResult):
        kind.from_json(stored)
    result = result_of(CommittedRef("j", "a", "p", (), stored))
    assert result.working_seconds == 0.0
    assert result.samples_done(32) == 0


def test_what_is_missing_is_not_noted_and_what_is_foreign_is_kept():
    found = TrainResult.from_json({"steps": 8, "seconds": {"training": 2}, "carbon": {"g": 3}})
    assert math.isnan(found.score)
    assert found.known_score is None
    assert found.seconds == StageSeconds(training=2.0)
    assert found.to_json()["carbon"] == {"g": 3}


def test_the_views_are_the_same_model_right_after_the_task_was_learnt():
    found = EvalResult.from_json(EVAL)
    assert found.view(View.LATEST) == found.views[View.TASK] == ViewResult(17.1875, 1.0986, 128, "54", 1.000007)
    assert found.known_score == 17.1875
    assert found.samples_done(32) == 128
    assert EvalResult().view(View.TASK) is None
    assert EvalResult().known_score is None


def test_a_selection_survives_json():
    chosen = SelectResult(
        score=50.0,
        loss=1.2,
        form="own",
        scores={"own": 50.0, "both": 49.0},
        samples=20,
        gain=Difference(1.0, -1.0, 3.0, 0.8),
        sees=("k",),
        similarity={"k": 0.5},
    )
    assert SelectResult.from_json(json.loads(canonical_json(chosen.to_json()))) == chosen
    assert SelectResult.from_json(SelectResult(score=1.0, loss=1.0, form="own").to_json()).gain is None


def test_a_choice_in_words_gives_the_losses_where_the_points_leave_it_open() -> None:
    losses = {"experience": 0.125, "own": 0.5, "both": 0.0725}
    sure = SelectResult(form="both", gain=Difference(9.5, 7.5, 11.5, 1.0), losses=losses)
    assert sure.in_words() == "experience and its own adapter; +9.5 points over experience alone (95 %: +7.5 to +11.5)"
    open_ = replace(sure, gain=Difference(0.0, -0.9, 0.9, 0.2))
    assert open_.in_words().endswith("(95 %: -0.9 to +0.9; loss 0.072 with it, 0.125 without)")
    declined = replace(open_, form="experience").in_words()
    assert declined.startswith("experience alone; an own adapter would give +0.0 points")
    assert SelectResult(form="own").in_words() == "its own adapter alone", "nothing to compare with"


def test_half_a_gain_is_none() -> None:
    assert SelectResult.from_json({"form": "own", "gain": {"mean": 1.0}}).gain is None
    assert SelectResult.from_json({"form": "own", "gain": {"mean": None, "low": 1, "high": 2, "confidence": 1}}).gain is None


def test_hosts_do_not_travel():
    assert without_hosts(TRAIN) == {name: value for name, value in TRAIN.items() if name != "nodes"}
