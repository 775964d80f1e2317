"""What the exact cheap form saves against per-adapter loops (the oracle's, which run the released code's sequence of steps).

    python -m tests.bench.bench_mixing [--device cpu|cuda] [--adapters 1 4 8 16 32] [--repeats 7] [--json FILE] …

Forward + backward at D=768, H=12, r=48, L=185, B=4, fp32 unless told otherwise; as in stage one, only the queries train.

- `site`: one mixing site alone, which is what the two differ in.
- `layer`: a whole frozen ViLT layer (fused attention) with its two sites: what a training step sees. The layer's own products,
  which both need, are in both.
- `released`: the same, but the loops run in the stock layer, whose attention is not fused: what the released code runs.
- time: median over repeats in which the two take turns, so that a busy machine harms both alike. `--clock cpu --threads 1` counts
  this process's processor time instead of the wall's: what to use where others compute on the same cores.
- peak: the most that the allocator hands out during a step, above what was there before (weights and input).
- saved: bytes that autograd keeps between forward and backward, each storage once; weights and the input itself left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import ViltConfig
from transformers.models.vilt.modeling_vilt import ViltLayer

from atlas_dist.model.mixing import AdapterGroup, MixingSite
from atlas_dist.model.mixing_spec import MixingSpec, Weighting
from atlas_dist.model.vilt import accelerate_vilt
from tests.oracle.naive_mixing import NaiveAdapter, naive_site

METHOD_TIME = {1: 1.0, 4: 1.2, 8: 1.5, 16: 1.9, 32: 2.3}
METHOD_MEMORY = {1: 1.05, 4: 2.0, 8: 3.1, 16: 4.5, 32: 6.0}
"""The ratios that docs/method.md, The cheap form quotes (CPU, fp32, "one layer")."""

SCOPES = ("site", "layer", "released")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Step = Callable[[], None]


def new_site(count: int, args: argparse.Namespace) -> MixingSite:
    """A site with `count` frozen adapters, of which the queries (or everything) train."""
    generator = torch.Generator().manual_seed(count)
    spec = MixingSpec(rank=args.rank, weighting=Weighting(args.weighting))
    site = MixingSite(args.width, args.heads, spec, visible=count, grows=False, generator=generator)
    assert site.frozen is not None
    site.frozen = AdapterGroup(count, args.width, args.heads, spec, generator)
    for name, parameter in site.named_parameters():
        parameter.requires_grad_(args.train == "all" or name.endswith("query"))
    return site.eval()


def naive_twin(site: MixingSite, args: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """The same adapters as separate tensors, run by the oracle's loop."""
    group = site.frozen
    assert group is not None
    adapters = []
    for i in range(group.count):
        tensors = [nn.Parameter(p[i].detach().clone(), requires_grad=p.requires_grad) for p in group.parameters()]
        adapters.append(NaiveAdapter(*tensors[:4], *(t.view(-1, args.width) for t in tensors[4:])))

    def run(x: Tensor) -> Tensor:
        return naive_site(x, adapters, heads=args.heads, weighting=args.weighting)[0]

    return run


def new_layer(args: argparse.Namespace, *, fused: bool) -> ViltLayer:
    """A frozen ViLT layer, with fused or with stock attention."""
    torch.manual_seed(0)
    config = ViltConfig(
        hidden_size=args.width,
        num_attention_heads=args.heads,
        intermediate_size=4 * args.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    layer = ViltLayer(config)
    return (accelerate_vilt(layer) if fused else layer).requires_grad_(False).eval()


def make_step(run: Callable[[Tensor], Any], x: Tensor, grad: Tensor, leaves: list[Tensor]) -> Step:
    """Forward and backward of `run`, leaving no gradients behind."""

    def step() -> None:
        output = run(x)
        output = output[0] if isinstance(output, tuple) else output
        output.backward(grad)
        for leaf in (x, *leaves):
            leaf.grad = None

    return step


def hooked(layer: ViltLayer, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
    """The layer with its two sites hooked in for the time of a call."""

    def run(x: Tensor) -> Any:
        pairs: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = [
            (layer.attention.output.dense, first),
            (layer.output.dense, second),
        ]
        handles = [dense.register_forward_hook(lambda _, __, output, site=site: site(output)) for dense, site in pairs]
        try:
            return layer(x)
        finally:
            for handle in handles:
                handle.remove()

    return run


def timed(steps: dict[str, Step], repeats: int, device: str, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each step; the steps take turns."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 2):
        for name, step in steps.items():
            _wait(device)
            begin = clock()
            step()
            _wait(device)
            if turn >= 2:
                taken[name].append(clock() - begin)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def peak_bytes(step: Step, device: str) -> int:
    """Highest sum of live allocations during a step, above the start."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def saved_bytes(run: Callable[[Tensor], Any], x: Tensor) -> int:
    """Bytes that autograd keeps between forward and backward: each storage once, weights, leaves that train and the input left
    out; a weight's transpose is the weight."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        whole = tensor if tensor._base is None else tensor._base
        if not (whole.is_leaf and whole.requires_grad) and not isinstance(whole, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run(x)
    del output
    return sum(storages.values())


def measure(count: int, scope: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table: T = `count`, scope one of SCOPES."""
    dtype = getattr(torch, args.dtype)
    sites = [new_site(count, args).to(args.device, dtype) for _ in range(1 if scope == "site" else 2)]
    naive, ours = [naive_twin(site, args) for site in sites], [lambda x, site=site: site(x).mixed for site in sites]
    runs: dict[str, Callable[[Tensor], Any]] = {"naive": naive[0], "ours": ours[0]}
    if scope != "site":
        theirs, fused = (new_layer(args, fused=f).to(args.device, dtype) for f in (scope == "layer", True))
        runs = {"naive": hooked(theirs, *naive), "ours": hooked(fused, *ours)}
    generator = torch.Generator().manual_seed(1)
    shape = (args.batch, args.length, args.width)
    x, grad = (torch.randn(shape, generator=generator).to(args.device, dtype) for _ in range(2))
    x.requires_grad_()
    leaves = [p for site in sites for p in site.parameters()]
    return {"scope": scope, "T": count, **beside_ours("naive", runs, x, grad, leaves, args)}


def beside_ours(
    peer: str, runs: dict[str, Callable[[Tensor], Any]], x: Tensor, grad: Tensor, leaves: list[Tensor], args: argparse.Namespace
) -> dict[str, float]:
    """Time and memory of `runs`, which are the peer and `ours`, and the peer's as multiples of ours."""
    steps = {name: make_step(run, x, grad, leaves) for name, run in runs.items()}
    row: dict[str, float] = {}
    for name, seconds in timed(steps, args.repeats, args.device, CLOCKS[args.clock]).items():
        row[f"{name}_ms"] = 1e3 * seconds
        row[f"{name}_peak_mib"] = peak_bytes(steps[name], args.device) / 2**20
        row[f"{name}_saved_mib"] = saved_bytes(runs[name], x) / 2**20
    for what in ("ms", "peak_mib", "saved_mib"):
        row[f"ratio_{what}"] = row[f"{peer}_{what}"] / row[f"ours_{what}"]
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table; `quoted` are the ratios of docs/method.md, The cheap form."""
    print(f"{'scope':8} {'T':>3} | {'time ms: naive':>14} {'ours':>7} {'ratio':>6} {'quoted':>6} | {'peak MiB: naive':>15} "
          f"{'ours':>7} {'ratio':>6} {'quoted':>6} | {'saved MiB: naive':>16} {'ours':>7} {'ratio':>6}")  # fmt: skip
    for r in rows:
        quoted = [f"{table[r['T']]:.2f}" if r["T"] in table else "" for table in (METHOD_TIME, METHOD_MEMORY)]
        print(f"{r['scope']:8} {r['T']:>3} | {r['naive_ms']:>14.1f} {r['ours_ms']:>7.1f} {r['ratio_ms']:>6.2f} {quoted[0]:>6} | "
              f"{r['naive_peak_mib']:>15.1f} {r['ours_peak_mib']:>7.1f} {r['ratio_peak_mib']:>6.2f} {quoted[1]:>6} | "
              f"{r['naive_saved_mib']:>16.1f} {r['ours_saved_mib']:>7.1f} {r['ratio_saved_mib']:>6.2f}")  # fmt: skip


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def parser_of(about: str | None, scopes: tuple[str, ...], adapters: list[int], rank: int) -> argparse.ArgumentParser:
    """The options that a benchmark of sites has, whatever it sets them beside."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--adapters", type=int, nargs="+", default=adapters)
    parser.add_argument("--scope", nargs="+", default=list(scopes), choices=scopes)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's default)")
    for name, value in {"width": 768, "heads": 12, "rank": rank, "length": 185, "batch": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    return parser


def keep(rows: list[dict[str, Any]], args: argparse.Namespace, **versions: str) -> None:
    """Write the rows where `--json` says, with all that they depend on."""
    if args.json:
        settings = {k: str(v) for k, v in vars(args).items() if k != "json"} | {"torch": torch.__version__} | versions
        args.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__, SCOPES, [1, 4, 8, 16, 32], rank=48)
    parser.add_argument("--train", default="queries", choices=["queries", "all"])
    parser.add_argument("--weighting", default="whole", choices=[w.value for w in Weighting])
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = [measure(count, scope, args) for scope in args.scope for count in args.adapters]
    where = f"{args.device}, {torch.get_num_threads()} threads, {args.clock} clock, {args.dtype}, {args.weighting}"
    sizes = f"B={args.batch} L={args.length} D={args.width} H={args.heads} r={args.rank}"
    print(f"torch {torch.__version__}, {where}; {sizes}; trains: {args.train}")
    show(rows)
    keep(rows, args)


if __name__ == "__main__":
    main()
