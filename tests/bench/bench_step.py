"""A whole training step of stage one and two: samples/s, MFU and peak memory, against per-adapter loops and the stock ViLT.

    python -m tests.bench.bench_step                                   # on a GPU: ViLT-B/32, bf16, T = 1 4 8 16
    python -m tests.bench.bench_step --device cpu --size tiny --batch 4 --repeats 2     # seconds; does it work at all?
    python -m tests.bench.bench_step --device cpu --size tiny-vilt --form default --adapters 0 1 8 --precision fp32 \
        --peers ours engine pass products                              # beside both limits of this machine

Needs torch, transformers and this checkout; no Ray, shards or network (weights are random), and DeepSpeed for `engine` alone. A
step is what training does: a pinned batch of bytes is copied and normalised, forward, loss, backward, AdamW.

- `ours`: as this package runs it; `--compile` and `--recompute` as the settings of the same meaning.
- `engine`: the same through DeepSpeed's engine, as a worker has it.
- `naive`: the same model and step, each site a loop over its adapters (tests/oracle: the released code's sequence of steps); of
  the released form only.
- `stock`: the unmodified transformers ViLT, forward only, without adapters, in the same precision; `backbone`: as we run it.
- `pass` and `products`: the two limits of `step_limits`. `x pass` is a step's time over the first, `of products` the second over
  its time.

Repeats of all peers take turns, the median counts, the device is waited for around each. MFU = FLOPs that the step needs (counted
on paper, model/flops.py; nothing that is computed twice) / time / the device's peak; "unknown" where the peak is. Peak memory is
what the allocator handed out during a step at most, above what was there before it (weights, optimizer and batch were).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import ViltModel

from atlas_dist.core.types import Budget, Role
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.flops import StepFlops, peak_flops, sample_flops
from atlas_dist.model.layers import LayerRuns
from atlas_dist.model.mixing import MixingSite, SiteOutput
from atlas_dist.model.mixing_spec import MixingSpec
from atlas_dist.model.trained import optimizer_groups
from atlas_dist.model.vilt import uniform_pixel_mask
from atlas_dist.train.engine import EngineSettings, build_engine, join_alone, prepare_process
from atlas_dist.train.loop import LoopSettings, train_step
from atlas_dist.train.mixture import OWN
from atlas_dist.train.module import StageModule
from tests.bench.bench_mixing import peak_bytes
from tests.bench.step_limits import backbone_pass, flops_of, products
from tests.kits.step import FORMS, SIZES, TWO, PlainEngine, Size, new_feeder, open_model, random_backbone, random_batches
from tests.oracle.naive_mixing import NaiveAdapter, naive_site

STAGES = ("one", "two")
USUAL, PEERS = ("ours", "naive", "stock", "backbone"), ("ours", "engine", "naive", "stock", "backbone", "pass", "products")
Step = Callable[[], Any]


class NaiveSite(nn.Module):
    """A mixing site whose adapters run one after the other; parameters and penalty are the fast site's."""

    def __init__(self, fast: MixingSite, heads: int) -> None:
        super().__init__()
        self.fast, self.heads = fast, heads

    def forward(self, x: Tensor) -> SiteOutput:
        adapters = [
            NaiveAdapter(g.down[i], g.down_bias[i], g.up[i], g.up_bias[i], g.query[i][None], g.key[i][None])
            for g in self.fast.groups()
            for i in range(g.count)
            if g.query is not None and g.key is not None
        ]
        mixed, alphas = naive_site(x, adapters, heads=self.heads)
        alpha = torch.cat(alphas, dim=1).detach()
        return SiteOutput(mixed, alpha, self.penalty(like=alpha.float()))

    def penalty(self, like: Tensor) -> Tensor:
        """As the fast site's: of queries, and of keys while one grows."""
        outputs: Any = [_Rows(g.query, g.key) for g in self.fast.groups()] if self.training else []
        return self.fast._penalty(outputs, like)


class _Rows:
    def __init__(self, query: Tensor | None, key: Tensor | None) -> None:
        self.query, self.key = query, key


def loop_over_adapters(model: AdaptedModel, heads: int) -> None:
    """Make every site of the model naive; what trains stays what it is."""
    for hook in model._hooks.values():
        naive: Any = NaiveSite(hook.site, heads)  # type: ignore[arg-type]
        naive.train(model.training)
        hook.site = naive


class Bench:
    """One device, one geometry, one precision: the steps that are measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.size = args, SIZES[args.size]
        self.device = torch.device(args.device)
        self.bf16 = args.precision == "bf16"
        self.peak = peak_flops(self.device, bf16=self.bf16)
        pinned = self.device.type == "cuda"
        self.batches = random_batches(self.size, args.batch, 2, pinned=pinned)
        self.feed = new_feeder(self.device)
        self.settings = LoopSettings(10**6, 1, 10**6, 0, args.batch, 1, 0.1)

    def training(self, backbone: ViltModel, stage: str, adapters: int, name: str) -> tuple[Step, AdaptedModel]:
        """A step of a stage on `adapters` visible adapters (stage two grows one more), by the peer of that name."""
        runs = LayerRuns() if name == "naive" else LayerRuns(recompute=self.args.recompute, compiled=self.args.compile)
        weighting, stages = FORMS[self.args.form]
        # Without an earlier adapter stage one trains nothing but the head.
        roles = [role for role in stages[stage] if adapters or role is not Role.COEFFICIENTS]
        spec = MixingSpec(rank=self.size.rank, weighting=weighting)
        model = open_model(backbone, self.size, adapters, roles, runs=runs, spec=spec)
        module = StageModule(model, model.head_spec, bf16=self.bf16).to(self.device).train()
        if name == "naive":
            loop_over_adapters(model, self.size.heads)
        engine = self._deepspeed(module) if name == "engine" else PlainEngine(module, Budget(), 10**6)
        turn = iter(range(10**9))

        def step() -> Any:
            return train_step(engine, OWN, self.batches[next(turn) % 2], self.feed, self.settings)

        return step, model

    def _deepspeed(self, module: StageModule) -> Any:
        prepare_process()
        join_alone()
        budget = Budget()
        groups = optimizer_groups(
            module.model,
            lr=budget.lr,
            query_lr_scale=budget.query_lr_scale,
            weight_decay=budget.weight_decay,
            coefficient_lr=budget.lr,
        )
        return build_engine(module, groups, EngineSettings(0, self.args.batch, 1, budget, 10**6))

    def limit(self, backbone: ViltModel, name: str) -> tuple[Step, float]:
        """What a step is held against (`step_limits`), and its FLOPs a sample."""
        if name == "products":
            step, needed = products(self.size, self.args.batch, self.device, bf16=self.bf16)
            return step, needed / self.args.batch
        (fed,) = self.feed(self.batches[0])
        bare = backbone_pass(backbone, fed.inputs)

        def step() -> None:
            with self._precision():
                bare()

        return step, flops_of(step) / self.args.batch

    def forward(self, backbone: ViltModel) -> Step:
        """A forward pass of a bare backbone, without gradient."""
        turn = iter(range(10**9))

        def step() -> Any:
            (fed,) = self.feed(self.batches[next(turn) % 2])
            pixels = fed.inputs["pixel_values"][:, 0]
            texts = {name: fed.inputs[name][:, 0] for name in ("input_ids", "attention_mask", "token_type_ids")}
            with torch.no_grad(), self._precision():
                return backbone(**texts, pixel_values=pixels, pixel_mask=uniform_pixel_mask(pixels)).pooler_output

        return step

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, steps: dict[str, Step]) -> dict[str, float]:
        """Median of each; they take turns."""
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(self.args.warmup + self.args.repeats):
            for name, step in steps.items():
                self.wait()
                begin = time.perf_counter()
                for _ in range(self.args.inner):
                    step()
                self.wait()
                if turn >= self.args.warmup:
                    taken[name].append((time.perf_counter() - begin) / self.args.inner)
        return {name: statistics.median(times) for name, times in taken.items()}

    def memory(self, step: Step) -> float:
        """MiB at most."""
        if self.device.type == "cpu":
            return peak_bytes(step, "cpu") / 2**20
        torch.cuda.reset_peak_memory_stats()
        step()
        self.wait()
        return torch.cuda.max_memory_allocated() / 2**20

    def rows(self, stage: str, adapters: int) -> list[dict[str, Any]]:
        """One row a peer. Every model has a backbone of its own, so memory is measured one at a time, then time in turns."""
        steps: dict[str, Step] = {}
        flops: dict[str, float] = {}
        peaks: dict[str, float] = {}
        for name in self.args.peers:
            backbone = random_backbone(self.size, self.device, bf16=self.bf16, fast=name != "stock")
            if name in ("ours", "engine", "naive"):
                steps[name], model = self.training(backbone, stage, adapters, name)
                flops[name] = needs(model, self.size).total
            elif name in ("pass", "products"):
                steps[name], flops[name] = self.limit(backbone, name)
            else:
                steps[name] = self.forward(backbone)
                with open_model(backbone, self.size, 0, TWO) as bare:
                    flops[name] = needs(bare, self.size).forward
            before = torch.cuda.memory_allocated() if self.device.type == "cuda" else 0
            steps[name]()
            peaks[name] = self.memory(steps[name]) - before / 2**20
        return [
            {
                "stage": stage,
                "T": adapters,
                "peer": name,
                "ms": 1e3 * seconds,
                "samples_per_s": self.args.batch / seconds,
                "tflops_per_s": self.args.batch * flops[name] / seconds / 1e12,
                "mfu": self.args.batch * flops[name] / seconds / self.peak if self.peak else "unknown",
                "peak_mib": peaks[name],
            }
            for name, seconds in self.seconds(steps).items()
        ]

    def profiled(self, stage: str, adapters: int) -> dict[str, Any]:
        """The ops of one step of ours that take longest, and how often the host launches something or waits."""
        backbone = random_backbone(self.size, self.device, bf16=self.bf16)
        step, model = self.training(backbone, stage, adapters, "ours")
        with model:
            for _ in range(self.args.warmup + 1):
                step()
            self.wait()
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
            with profile(activities=kinds) as profiler:
                step()
                self.wait()
        events = profiler.key_averages()
        order = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        print(f"\nstage {stage}, T={adapters}: one step")
        print(events.table(sort_by=order, row_limit=self.args.top, max_name_column_width=60))
        names = {e.key: e.count for e in events}

        def count(*words: str) -> int:
            return sum(times for name, times in names.items() if any(word in name for word in words))

        counted = {
            "launches": count("cudaLaunchKernel", "cuLaunchKernel"),
            "copies": count("cudaMemcpyAsync"),
            # The wait around the step itself is one of the device synchronisations.
            "waits": count("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
            "values read back": count("aten::_local_scalar_dense"),
            "operators": sum(times for name, times in names.items() if name.startswith("aten::")),
        }
        print(", ".join(f"{what}: {times}" for what, times in counted.items()))
        return {"stage": stage, "T": adapters, **counted}


def needs(model: AdaptedModel, size: Size) -> StepFlops:
    """Of one sample; ViLT says what it goes through."""
    found = sample_flops(model, size.text)
    assert found is not None
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table; `x naive` is how many times faster than the loops, the last two columns are of the limits."""
    heads = f"{'ms':>9} {'samples/s':>10} {'TFLOP/s':>8} {'MFU':>8} {'peak MiB':>9}"
    print(f"{'stage':5} {'T':>3} {'peer':8} | {heads} | {'x naive':>7} {'x pass':>7} {'of products':>11}")
    found = {(r["stage"], r["T"], r["peer"]): r for r in rows}
    for r in rows:
        others = {peer: found.get((r["stage"], r["T"], peer)) for peer in ("naive", "pass", "products")}
        naive, bare, best = others["naive"], others["pass"], others["products"]
        faster = f"{naive['ms'] / r['ms']:.2f}" if naive and r["peer"] == "ours" else ""
        # Times per FLOP: how much slower than the backbone's own passes, and which share of the best product.
        trains = r["peer"] in ("ours", "engine", "naive")
        slower = f"{bare['tflops_per_s'] / r['tflops_per_s']:.2f}" if bare and trains else ""
        share = f"{r['tflops_per_s'] / best['tflops_per_s']:.0%}" if best and (trains or r["peer"] == "pass") else ""
        mfu = r["mfu"] if isinstance(r["mfu"], str) else f"{r['mfu']:.1%}"
        print(f"{r['stage']:5} {r['T']:>3} {r['peer']:8} | {r['ms']:>9.1f} {r['samples_per_s']:>10.1f} {r['tflops_per_s']:>8.3f} "
              f"{mfu:>8} {r['peak_mib']:>9.0f} | {faster:>7} {slower:>7} {share:>11}")  # fmt: skip


def where(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """What the figures belong to."""
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
    size: Size = bench.size
    return {
        "device": name,
        "peak_tflops": bench.peak / 1e12 if bench.peak else "unknown",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokens": size.tokens,
        **{k: v for k, v in vars(args).items() if k != "json"},
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="vilt-b32", choices=list(SIZES))
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--batch", type=int, default=64, help="samples a step")
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 4, 8, 16], help="T, the visible adapters")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--form", default="released", choices=list(FORMS), help="of ATLAS")
    parser.add_argument("--peers", nargs="+", default=list(USUAL), choices=PEERS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--inner", type=int, default=1, help="steps a repeat, between two waits")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="our layers through torch.compile")
    parser.add_argument("--recompute", action="store_true", help="our layers with activation checkpointing")
    parser.add_argument("--profile", action="store_true", help="also profile one step of ours for each stage and T")
    parser.add_argument("--top", type=int, default=25, help="operators in the profile's table")
    parser.add_argument("--json", type=Path, help="also write everything here")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here: --device cpu --size tiny shows that the script works.")
    if "naive" in args.peers and args.form != "released":
        raise SystemExit("The loops are those of the released form: leave out `naive`, or --form.")
    bench = Bench(args)
    settings = where(bench, args)
    print(f"{settings['device']}, torch {settings['torch']}, transformers {settings['transformers']}, {args.precision}")
    print(f"{args.size}, B={args.batch} L={settings['tokens']}, peak {settings['peak_tflops']} TFLOP/s")
    rows: list[dict[str, Any]] = []
    for stage in args.stages:
        for adapters in args.adapters:
            rows += bench.rows(stage, adapters)
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
    show(rows)
    profiles = [bench.profiled(stage, adapters) for stage in args.stages for adapters in args.adapters] if args.profile else []
    if args.json:
        args.json.write_text(json.dumps({"settings": settings, "rows": rows, "profiles": profiles}, indent=1) + "\n")


if __name__ == "__main__":
    main()
