"""What processes that compute nothing import: a run starts several, and a user waits for all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kits.stage import pack_toys, toy_config

COMPUTE = "{'torch', 'transformers', 'deepspeed'}"


def imported_by(code: str) -> list[str]:
    """Which of the libraries that compute a fresh process has imported after `code`; each takes seconds of a core."""
    code = f"import sys; {code}; print(*sorted({COMPUTE} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return found.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    "module", ["cli.app", "app.run", "coordinator.expand", "coordinator.ray_actor", "coordinator.ray_worker"]
)
def test_what_computes_nothing_imports_nothing_that_computes(module: str) -> None:
    assert imported_by(f"import atlas_dist.{module}") == []


def test_a_plan_on_a_backbone_that_is_known_computes_nothing(tmp_path: Path) -> None:
    """The first one loads the backbone; what it is stays known to the next process."""
    pack_toys(toy_config(tmp_path), samples=16)
    words = ["experiment=toy", f"store.url={tmp_path}/store", f"shards.url={tmp_path}/shards", "train.precision=fp32"]
    code = f"import atlas_dist; atlas_dist.plan(*{words!r})"
    imported_by(code)
    assert imported_by(code) == []
