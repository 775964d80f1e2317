"""docs/tutorial.md as a reader follows it: its blocks, in order, in an empty folder; on random weights and for a few steps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORTER = "experiment=mine backbone=random_tiny train.stage1.max_steps=2 train.stage2.max_steps=4"
"""Of the page's own settings only the backbone and the number of steps are changed."""


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert [kind for kind, _ in blocks].count("python") == 2
    said = []
    for kind, text in blocks:
        for command in [text] if kind == "python" else text.strip().splitlines():
            done = _run(kind, command, tmp_path)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            said.append(done.stdout)
    everything = "\n".join(said)
    assert "packed claims/train" in everything
    assert "complete" in everything
    assert everything.count("reproduced") == 2
    assert "alpha of colours" in everything
    assert "Prediction(task='colours'" in said[-1]
    assert (tmp_path / "mine-run" / "report-mine" / "index.html").exists()
    labels = {t["name"]: t["labels"] for t in json.loads((tmp_path / "mine-bank" / "adapter_config.json").read_text())["tasks"]}
    assert labels == {"colours": ["blue", "green", "red", "yellow"], "claims": ["no", "yes"]}


def _run(kind: str, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(PAGE.parents[1])}
    if kind == "python":
        words = [sys.executable, "-c", command]
    else:
        shortened = command.replace("experiment=mine", SHORTER)
        assert shortened.startswith("atlas-dist ")
        shell = shortened.replace("atlas-dist", f"{sys.executable} -m atlas_dist", 1)
        words = ["bash", "-ec", shell]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=900)
