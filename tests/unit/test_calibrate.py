"""Which arithmetic pays: a rule over times that are made up, and one real try."""

from __future__ import annotations

import math
import subprocess

import pytest

from atlas_dist import calibrate
from atlas_dist.calibrate import MARGIN, Speeds, agreed, measured, measured_here
from atlas_dist.config import Precision
from atlas_dist.errors import ConfigError

FAST, SLOW, NONE = Speeds(2.0, 1.0), Speeds(1.0, 5.0), Speeds(1.0, math.inf)


@pytest.mark.parametrize(
    ("speeds", "choice"),
    [(FAST, "bf16"), (SLOW, "fp32"), (NONE, "fp32"), (Speeds(MARGIN, 1.0), "bf16"), (Speeds(MARGIN - 0.01, 1.0), "fp32")],
)
def test_bfloat16_must_be_clearly_faster(speeds: Speeds, choice: str) -> None:
    assert speeds.choice.value == choice


def test_nodes_that_agree_decide_and_nodes_that_do_not_are_named() -> None:
    assert agreed([("a", FAST), ("b", FAST)]) is Precision.BF16
    assert agreed([("a", SLOW), ("b", NONE)]) is Precision.FP32
    with pytest.raises(ConfigError, match=r"bf16: big \(bf16 is 2.0x as fast as fp32\); fp32: old \(.*not multiplied") as told:
        agreed([("old", NONE), ("big", FAST)])
    assert "train.precision=fp32 or bf16" in told.value.fix


def test_a_cpu_that_cannot_multiply_in_it_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "cpu_multiplies_bf16", lambda: False)
    assert measured(0.0) == NONE


def test_both_are_timed_where_the_cpu_says_that_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "cpu_multiplies_bf16", lambda: True)
    found = measured(1e-9)  # one turn of each
    assert 0 < found.fp32 < math.inf
    assert 0 < found.bf16 < math.inf


def test_a_gpu_is_tried_in_a_process_that_lets_go_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        asked.append((command[-1], "CUDA_VISIBLE_DEVICES" in dict(options["env"]) and options["env"]["CUDA_VISIBLE_DEVICES"]))  # type: ignore[call-overload, index]
        return subprocess.CompletedProcess(command, len(asked) - 1, 'a warning\n{"fp32": 2.0, "bf16": 1.0}\n', "no device\n")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(calibrate.subprocess, "run", answer)
    assert measured_here(on_gpu=True) == FAST
    assert asked == [("atlas_dist.calibrate", False)]
    with pytest.raises(ConfigError, match=r"could not be measured here: no device"):
        measured_here(on_gpu=True)
