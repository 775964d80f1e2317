"""Pretrain the tiny backbone: ``python -m scripts.pretrain_tiny_vilt.train --minutes 45``. The same command resumes.

The schedule runs on the clock, not on steps: the learning rate reaches zero when the minutes are spent, whatever the machine
manages in them. The log says how many steps that was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import ViltModel

from scripts.pretrain_tiny_vilt import objectives
from scripts.pretrain_tiny_vilt.backbone import new_backbone

SEED = 7
PEAK_RATE = 1.5e-3
WARM_UP_MINUTES = 1.0
WEIGHT_DECAY = 0.05
LOG_EVERY = 50
SAVE_EVERY = 200
FULL_PICTURES_FROM = 0.75  # share of the run after which photos are no longer thinned out


@dataclass
class Progress:
    """How far the run is; ``seconds`` counts training time only, over all resumptions."""

    step: int = 0
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("/tmp/tiny_vilt"), help="what build.py wrote")
    parser.add_argument("--run", default="main", help="name of the run: checkpoints go to WORK/RUN.pt")
    parser.add_argument("--minutes", type=float, default=45.0, help="training time in all")
    parser.add_argument("--after", default="", help="start from the weights of this finished run, with a fresh optimizer")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.work, arguments.run, arguments.minutes, arguments.after)


def train(work: Path, run: str, minutes: float, after: str = "") -> None:
    """Run or resume to the end, leaving WORK/RUN.pt and the log WORK/RUN.jsonl."""
    checkpoint, log = work / f"{run}.pt", work / f"{run}.jsonl"
    corpus = objectives.Corpus(work, SEED)
    model = new_backbone(SEED).train()
    heads = objectives.Heads(corpus, model.config.hidden_size)
    optimizer = torch.optim.AdamW(_groups(model, heads), lr=PEAK_RATE, betas=(0.9, 0.98), eps=1e-8)
    progress = Progress()
    if checkpoint.exists():
        _resume(checkpoint, model, heads, optimizer, corpus, progress)
    elif after:
        earlier = torch.load(work / f"{after}.pt", weights_only=True)
        model.load_state_dict(earlier["model"])
        heads.load_state_dict(earlier["heads"], strict=False)  # objectives come and go
    recent: dict[str, list[float]] = defaultdict(list)
    while progress.seconds < 60 * minutes:
        started = time.monotonic()
        _set_rate(optimizer, progress, minutes)
        for name, value in _step(model, heads, corpus, optimizer, progress.seconds / (60 * minutes)).items():
            recent[name].append(value)
        progress.step += 1
        progress.seconds += time.monotonic() - started
        if progress.step % LOG_EVERY == 0:
            _write_log(log, progress, recent)
            recent.clear()
        if progress.step % SAVE_EVERY == 0:
            _save(checkpoint, model, heads, optimizer, corpus, progress)
    _save(checkpoint, model, heads, optimizer, corpus, progress)


def _step(
    model: ViltModel,
    heads: objectives.Heads,
    corpus: objectives.Corpus,
    optimizer: torch.optim.Optimizer,
    share: float,
) -> dict[str, float]:
    """One optimizer step over all streams; gradients add up stream by stream, so that only one graph is alive."""
    keep = 32 if share < FULL_PICTURES_FROM else None
    values: dict[str, float] = {}
    optimizer.zero_grad(set_to_none=True)
    for stream in (objectives.name_photos, objectives.name_glyphs, objectives.talk, objectives.read):
        options = {"keep": keep} if stream is objectives.name_photos else {}
        with torch.autocast("cpu", torch.bfloat16):
            losses = stream(model, heads, corpus, **options)  # type: ignore[operator]
        objectives.total(losses).backward()
        values |= {name: float(loss.detach()) for name, loss in losses.items()}
    torch.nn.utils.clip_grad_norm_([*model.parameters(), *heads.parameters()], 1.0)
    optimizer.step()
    return values


def _groups(model: ViltModel, heads: objectives.Heads) -> list[dict[str, object]]:
    """Matrices decay; biases, norms and embeddings do not."""
    named = [*model.named_parameters(), *heads.named_parameters()]
    decayed = [value for name, value in named if value.ndim > 1 and "embeddings" not in name]
    rest = [value for name, value in named if value.ndim <= 1 or "embeddings" in name]
    return [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]


def _set_rate(optimizer: torch.optim.Optimizer, progress: Progress, minutes: float) -> None:
    share = progress.seconds / (60 * minutes)
    rate = PEAK_RATE * min(1.0, (progress.seconds / 60 + 0.01) / WARM_UP_MINUTES, 0.5 * (1 + math.cos(math.pi * share)))
    for group in optimizer.param_groups:
        group["lr"] = rate


def _write_log(log: Path, progress: Progress, recent: dict[str, list[float]]) -> None:
    means = {name: round(sum(values) / len(values), 4) for name, values in recent.items()}
    with log.open("a") as lines:
        lines.write(json.dumps({"step": progress.step, "minutes": round(progress.seconds / 60, 2), **means}) + "\n")


def _save(
    path: Path,
    model: ViltModel,
    heads: objectives.Heads,
    optimizer: torch.optim.Optimizer,
    corpus: objectives.Corpus,
    progress: Progress,
) -> None:
    state = {
        "model": model.state_dict(),
        "heads": heads.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": corpus.generator.get_state(),
        "step": progress.step,
        "seconds": progress.seconds,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def _resume(
    path: Path,
    model: ViltModel,
    heads: objectives.Heads,
    optimizer: torch.optim.Optimizer,
    corpus: objectives.Corpus,
    progress: Progress,
) -> None:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    heads.load_state_dict(state["heads"])
    optimizer.load_state_dict(state["optimizer"])
    corpus.generator.set_state(state["generator"])
    progress.step, progress.seconds = state["step"], state["seconds"]


if __name__ == "__main__":
    main()
