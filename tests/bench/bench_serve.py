"""Answering several tasks: one forward pass over a mixed batch, against one pass a task, against building the model anew a task.

    python -m tests.bench.bench_serve [--backbone tiny] [--tasks 4] [--rows 1 4 16] [--device cpu] [--threads 1]

Random adapters on a real backbone: speed does not depend on what was learnt. Before anything is timed, the answers are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from atlas_dist.bank.contents import Base, Learnt
from atlas_dist.bank.weights import BankWeights, LearntWeights
from atlas_dist.core.attempts import CommittedRef
from atlas_dist.core.types import TaskKind, TaskSpec
from atlas_dist.methods import make_method
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import Backbone, load_backbone
from atlas_dist.model.heads import HeadSpec
from atlas_dist.serve.mixed import MixedModel, TaskBatch, TaskOutput


def random_bank(backbone: Backbone, tasks: int, rank: int) -> BankWeights:
    """A sequence of single-image tasks, each of which sees all before it."""
    method = make_method("atlas", {"rank": rank})
    base = Base(backbone.name, "", "", backbone.digest)
    learnt: dict[str, LearntWeights] = {}
    for number in range(tasks):
        spec = HeadSpec(TaskKind.SINGLE, 10 + number)
        with AdaptedModel(backbone.model, spec, method.mixing, visible=number, grows=True, seed=number) as model:
            if number:
                model.load_adapters([task.adapter for task in learnt.values()])
            own = {**model.export_queries(), **model.export_head()}
            adapter = model.export_adapter()
        key = f"task{number}"
        task = TaskSpec(key, TaskKind.SINGLE, 10 + number, 8 + 8 * (number % 3), "d", "train", "val", "", "")
        ref = CommittedRef(key, key, key, (), {"score": 0.0})
        about = Learnt(key, key, task, base, "atlas", {"rank": rank}, tuple(learnt), ref, 0.0)
        learnt[key] = LearntWeights(about, adapter, own)
    return BankWeights("bench", "fp32", learnt)


def random_batch(backbone: Backbone, weights: BankWeights, key: str, rows: int, device: torch.device) -> TaskBatch:
    length = weights.tasks[key].learnt.task.max_text
    ids = torch.randint(5, 1000, (rows, 1, length), device=device)
    side = backbone.image_size
    return TaskBatch(key, ids, torch.ones_like(ids), torch.zeros_like(ids), torch.randn(rows, 1, 3, side, side, device=device))


def anew(backbone: Backbone, weights: BankWeights, batch: TaskBatch) -> torch.Tensor:
    """What the trainer's model would do: hook one task's model into the backbone, one pass, unhook."""
    task = weights.tasks[batch.key]
    spec = HeadSpec(task.learnt.task.kind, task.learnt.task.classes)
    with AdaptedModel(
        backbone.model, spec, weights.method().mixing, visible=len(task.learnt.view), grows=False, seed=0
    ) as model, torch.inference_mode():  # fmt: skip
        model.load_adapters([weights.tasks[key].adapter for key in task.learnt.view])
        model.load_head({n: t for n, t in task.own.items() if n.startswith("head/")})
        model.load_queries({n: t for n, t in task.own.items() if n.startswith("queries/")})
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "token_type_ids": batch.token_type_ids,
            "pixel_values": batch.pixels,
        }
        logits: torch.Tensor = model.eval()(inputs).logits
        return logits


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu` counts this process's own time: what to use where others compute on the same cores."""


def seconds(what: Sequence[Callable[[], object]], device: torch.device, clock: str, repeats: int) -> list[float]:
    """Median time of each call, device work included; they take turns, so that a busy machine harms all alike."""
    times: list[list[float]] = [[] for _ in what]
    for _ in range(repeats + 1):
        for call, taken in zip(what, times, strict=True):
            began = CLOCKS[clock]()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(CLOCKS[clock]() - began)
    return [median(taken[1:]) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16], help="of each task")
    parser.add_argument("--rank", type=int, default=48)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    backbone = load_backbone(args.backbone)
    print(
        f"{args.backbone} on {device}, {args.threads} threads, {args.clock} clock; milliseconds a batch, median of {args.repeats}"
    )
    print(f"{'tasks':>5} {'rows':>5} {'mixed':>9} {'a pass a task':>14} {'anew a task':>12} {'mixed gains':>12}")
    for tasks in args.tasks:
        weights = random_bank(backbone, tasks, args.rank)
        backbone.model.to(device)
        model = MixedModel(backbone.model, weights, weights.method().mixing)
        for rows in args.rows:
            batches = [random_batch(backbone, weights, key, rows, device) for key in weights.tasks]

            def one_each(chosen: list[TaskBatch] = batches, with_: MixedModel = model) -> list[TaskOutput]:
                return [with_([batch])[0] for batch in chosen]

            for together, alone in zip(model(batches), one_each(), strict=True):
                torch.testing.assert_close(together.logits, alone.logits, rtol=1e-4, atol=1e-4)
            calls = (
                lambda b=batches, m=model: m(b),
                one_each,
                lambda b=batches, w=weights: [anew(backbone, w, x) for x in b],
            )
            mixed, each, fresh = seconds(calls, device, args.clock, args.repeats)
            print(
                f"{tasks:>5} {rows:>5} {1e3 * mixed:>9.1f} {1e3 * each:>14.1f} {1e3 * fresh:>12.1f} {each / mixed:>11.2f}x",
                flush=True,
            )
        backbone.model.to("cpu")


if __name__ == "__main__":
    main()
