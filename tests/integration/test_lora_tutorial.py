"""docs/lora.md as a reader follows it: its blocks, in order, in an empty folder, as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from atlas_dist.bank.contents import read_bank
from atlas_dist.bank.weights import load_weights
from atlas_dist.core.results import SelectResult, TrainResult
from atlas_dist.core.types import TaskKind
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import load_backbone
from atlas_dist.model.heads import HeadSpec
from atlas_dist.runs.status import load_run
from atlas_dist.store.local import LocalStore

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "lora.md"
BLOCK = re.compile(r"^```(python|sh|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEAD = HeadSpec(TaskKind.SINGLE, 2)


def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert [kind for kind, _ in blocks].count("python") == 3
    said = []
    for kind, text in blocks:
        if kind == "yaml":
            (tmp_path / text.splitlines()[1].removeprefix("# ")).write_text(text, encoding="utf-8")
            continue
        for command in [text] if kind == "python" else text.strip().splitlines():
            done = run(kind, command, tmp_path)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            said.append(done.stdout)
    everything = "\n".join(said)
    print(everything)
    assert "cc-by-4.0" in everything and "Creative Commons Attribution" in everything
    assert "all 7 jobs are committed" in everything and "largest difference" in said[-1]

    store = LocalStore(tmp_path / "mine-run" / "store")
    bank, (state, _) = read_bank(store, "borrow"), load_run(store, "borrow")
    (imported,) = bank.imported
    corners = bank.find("corners")
    experience = state.job(SelectResult.of(corners.ref).candidates["experience"]).committed
    assert experience is not None and TrainResult.of(experience).sees == (imported,), "stage one looked at the imported adapter"
    assert (tmp_path / "adapters" / "shapes_lora" / "LICENSE").exists()

    # The grown adapter by itself, where α is 1.
    weights = load_weights(store, bank)
    wanted = ours(dict(weights.tasks[corners.key].adapter), weights.method().mixing)
    with torch.no_grad():
        peft = PeftModel.from_pretrained(load_backbone("tiny").model, str(tmp_path / "adapters" / "corners")).eval()
        torch.testing.assert_close(peft(**batch()).pooler_output, wanted, rtol=1e-5, atol=1e-5)


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, 50, (3, 9), generator=generator)
    pixels = torch.randn(3, 3, 64, 64, generator=generator)
    return {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0, "pixel_values": pixels}


def ours(adapter: dict[str, Tensor], mixing: object) -> Tensor:
    model = AdaptedModel(load_backbone("tiny").model, HEAD, mixing, visible=0, grows=True, seed=0, ranks=[])  # type: ignore[arg-type]
    with model, torch.no_grad():
        model.load_grown(adapter)
        return model.eval().features({name: value[:, None] for name, value in batch().items()}, HEAD)


def run(kind: str, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # One thread each: on shared cores the threads of small products mostly wait for each other.
    env = {**os.environ, "PYTHONPATH": str(PAGE.parents[1]), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", command]
    if kind == "sh":
        assert command.startswith("atlas-dist ")
        words = ["bash", "-ec", command.replace("atlas-dist", f"{sys.executable} -m atlas_dist", 1)]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=900)
