"""Write a checkpoint into the package: ``python -m scripts.pretrain_tiny_vilt.export --checkpoint /tmp/tiny_vilt/main.pt``."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import ViltModel

from atlas_dist.model.backbone import load_backbone
from atlas_dist.model.backbone_refs import TINY_FOLDER
from scripts.pretrain_tiny_vilt.backbone import tiny_config

MOST_BYTES = 8_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("/tmp/tiny_vilt/main.pt"))
    parser.add_argument("--folder", type=Path, default=TINY_FOLDER)
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.folder)


def export(checkpoint: Path, folder: Path) -> None:
    """Config, weights (float16, read back as float32: half the size, and the rounding is below the noise) and tokenizer."""
    state = torch.load(checkpoint, weights_only=True)
    model = ViltModel(tiny_config())
    model.load_state_dict(state["model"])
    model.half().save_pretrained(folder)
    for file in (checkpoint.parent / "tokenizer").iterdir():
        shutil.copy(file, folder / file.name)
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size <= MOST_BYTES, f"{folder} holds {size} bytes, more than {MOST_BYTES}"
    print(f"step {state['step']}, {state['seconds'] / 60:.1f} minutes -> {folder}, {size / 1e6:.2f} MB")
    if folder == TINY_FOLDER:
        print("digest", load_backbone("tiny").digest)


if __name__ == "__main__":
    main()
