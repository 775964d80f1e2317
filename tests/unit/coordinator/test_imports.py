"""What processes that compute nothing import: a run starts several, and a user waits for all of them."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["atlas_dist.coordinator.ray_actor", "atlas_dist.coordinator.ray_worker"])
def test_neither_the_coordinator_nor_the_controller_imports_models(module: str) -> None:
    """Of transformers' models alone the import takes seconds of a core."""
    code = f"import sys, {module}; print(*sorted({{'torch', 'transformers', 'deepspeed'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.split() == []
