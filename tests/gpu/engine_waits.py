"""How long a step takes through DeepSpeed's engine, and how often it waits for the device.

python -m tests.gpu.engine_waits FILE
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from atlas_dist.core.types import Budget
from atlas_dist.device import device
from atlas_dist.model.trained import optimizer_groups
from atlas_dist.train import engine as module
from atlas_dist.train.loop import LoopSettings, train_step
from atlas_dist.train.mixture import OWN
from atlas_dist.train.module import StageModule
from tests.kits.step import SIZES, TWO, new_feeder, open_model, random_backbone, random_batches


def measured(size: str, *, timer: bool, steps: int = 20, batch: int = 64) -> dict[str, Any]:
    """Milliseconds and synchronisations of a step, with DeepSpeed's throughput timer or without."""
    module.prepare_process()
    module.join_alone()
    from deepspeed.accelerator import get_accelerator

    at, geometry = device(), SIZES[size]
    settings = module.EngineSettings(0, batch, 1, Budget(), steps)
    config = module._deepspeed_config(settings) | {"timers": {"throughput": {"enabled": timer}}}
    waits: list[int] = []
    with (
        open_model(random_backbone(geometry, at, bf16=True), geometry, 4, TWO) as model,
        mock.patch.object(module, "_deepspeed_config", lambda _: config),
    ):
        stage = StageModule(model, model.head_spec, bf16=True).to(at).train()
        groups = optimizer_groups(model, lr=1e-4, query_lr_scale=1.0, weight_decay=0.0, backbone_lr_scale=1.0)
        engine, feed = module.build_engine(stage, groups, settings), new_feeder(at)
        batches = random_batches(geometry, batch, 2, pinned=at.type == "cuda")
        loop = LoopSettings(steps, 1, steps, 0, batch, 1, 0.1)
        for number in range(3):
            train_step(engine, OWN, batches[number % 2], feed, loop)
        synchronize = get_accelerator().synchronize
        synchronize()
        began = time.perf_counter()
        with mock.patch.object(type(get_accelerator()), "synchronize", lambda *_: (waits.append(1), synchronize())):
            for number in range(steps):
                train_step(engine, OWN, batches[number % 2], feed, loop)
        synchronize()
        seconds = time.perf_counter() - began
        engine.destroy()
    return {"timer": timer, "ms": round(1000 * seconds / steps, 2), "waits_a_step": len(waits) / steps}


if __name__ == "__main__":
    size = "vilt-b32" if torch.cuda.is_available() else "tiny"
    found = {"device": str(device()), "runs": [measured(size, timer=timer) for timer in (False, True)]}
    print(json.dumps(found))
    Path(sys.argv[1]).write_text(json.dumps(found) + "\n")
