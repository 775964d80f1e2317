"""Several active LoRA adapters on the same layers: our stacked form beside PEFT's, which runs one adapter after the other.

    python -m tests.bench.bench_lora [--adapters 1 4 8 16] [--clock cpu] [--threads 1] [--repeats 7] [--json FILE] …

A frozen ViLT layer (D=768, attention not fused, r=16, L=185, B=4, fp32 unless told otherwise) with T adapters at each of its six
linear layers, or those that `--targets` names. Forward and backward; the layer's own products, which both need, are in both.

- `frozen`: nothing of the adapters trains; gradients pass through them to the input.
- `coefficients`: each frozen adapter's weight at each layer trains, as in stage one. PEFT has no such weights; a parameter stands
  in place of each of its `scaling` numbers, which is all that it takes.
- `all`: every A and B trains.
- outputs and the input's gradient are compared first: the two compute the same.
- time: median over repeats in which the two take turns. peak: the most that the allocator hands out during a step, above what was
  there before. saved: bytes that autograd keeps between forward and backward, each storage once, without weights and input.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from atlas_dist.model.lora import LoraSite
from atlas_dist.model.mixing_spec import LoraSpec, MixingSpec, Weighting
from tests.bench.bench_mixing import beside_ours, keep, new_layer, parser_of

SCOPES = ("frozen", "coefficients", "all")


def with_peft(layer: nn.Module, count: int, args: argparse.Namespace, scope: str) -> nn.Module:
    """The layer with `count` active adapters of PEFT; both matrices of each are drawn."""
    config = peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=list(args.targets))
    for number in range(count):
        layer = peft.inject_adapter_in_model(config, layer, adapter_name=f"a{number}")
    for module in layer.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter([f"a{number}" for number in range(count)])
    generator = torch.Generator().manual_seed(0)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(scope == "all" and "lora_" in name)
        if "lora_B" in name:
            parameter.data.normal_(0.0, 0.02, generator=generator)
    if scope == "coefficients":
        for number, module in enumerate([m for m in layer.modules() if isinstance(m, LoraLayer)]):
            weights = {name: nn.Parameter(torch.tensor(float(scale))) for name, scale in module.scaling.items()}
            module.scaling = weights
            for name, weight in weights.items():
                layer.register_parameter(f"coefficient_{number}_{name}", weight)
    return layer.eval()


def stacked(theirs: nn.Module, layer: nn.Module, count: int, args: argparse.Namespace, scope: str) -> list[LoraSite]:
    """Sites on `layer` with PEFT's own adapters."""
    spec = MixingSpec(rank=args.rank, weighting=Weighting.EXPERIENCE, per_sample=False, lora=LoraSpec())
    sites = []
    for path, module in theirs.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        linear = layer.get_submodule(path)
        site = LoraSite(linear, spec, ranks=[args.rank] * count, own=None, generator=torch.Generator()).to(args.device)
        assert site.frozen is not None and site.coefficients is not None
        with torch.no_grad():
            for number in range(count):
                slots = site.frozen.slots(path, number)
                slots[f"adapter/{path}/lora_A.weight"][0].copy_(module.lora_A[f"a{number}"].weight)
                slots[f"adapter/{path}/lora_B.weight"][0].copy_(module.lora_B[f"a{number}"].weight)
                slots[f"adapter/{path}/scale"][0].fill_(float(module.scaling[f"a{number}"]))
            site.coefficients.start.fill_(1.0)
        site.frozen.requires_grad_(scope == "all")
        site.coefficients.requires_grad_(scope == "coefficients")
        linear.register_forward_hook(lambda _, inputs, output, site=site: site(inputs[0], output).mixed)
        sites.append(site)
    return sites


def measure(count: int, scope: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table: T = `count`."""
    base = new_layer(args, fused=False).to(args.device)
    theirs = with_peft(copy.deepcopy(base), count, args, scope).to(args.device)
    ours = copy.deepcopy(base)
    sites = stacked(theirs, ours, count, args, scope)
    dtype = getattr(torch, args.dtype)
    for module in (theirs, ours, *sites):
        module.to(dtype)
    generator = torch.Generator().manual_seed(1)
    x, grad = (torch.randn((args.batch, args.length, args.width), generator=generator).to(args.device, dtype) for _ in range(2))
    x.requires_grad_()
    runs: dict[str, Callable[[Tensor], Any]] = {"peft": theirs, "ours": ours}
    differs_by = _difference(runs, x, grad)
    leaves = [p for module in (theirs, *sites) for p in module.parameters()]
    return {"scope": scope, "T": count, "differs_by": differs_by, **beside_ours("peft", runs, x, grad, leaves, args)}


def _difference(runs: dict[str, Callable[[Tensor], Any]], x: Tensor, grad: Tensor) -> float:
    """Largest difference of outputs and input gradients, as a share of the largest number."""
    found = []
    for run in runs.values():
        output = run(x)
        output = output[0] if isinstance(output, tuple) else output
        found.append((output.detach(), *torch.autograd.grad(output, x, grad)))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True))


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'scope':12} {'T':>3} | {'time ms: peft':>13} {'ours':>7} {'ratio':>6} | {'peak MiB: peft':>14} {'ours':>7} "
          f"{'ratio':>6} | {'saved MiB: peft':>15} {'ours':>7} {'ratio':>6} | differs by")  # fmt: skip
    for r in rows:
        print(f"{r['scope']:12} {r['T']:>3} | {r['peft_ms']:>13.1f} {r['ours_ms']:>7.1f} {r['ratio_ms']:>6.2f} | "
              f"{r['peft_peak_mib']:>14.1f} {r['ours_peak_mib']:>7.1f} {r['ratio_peak_mib']:>6.2f} | "
              f"{r['peft_saved_mib']:>15.1f} {r['ours_saved_mib']:>7.1f} {r['ratio_saved_mib']:>6.2f} | "
              f"{r['differs_by']:.1e}")  # fmt: skip


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__, SCOPES, [1, 4, 8, 16], rank=16)
    parser.add_argument("--targets", nargs="+", default=["query", "key", "value", "dense"])
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = [measure(count, scope, args) for scope in args.scope for count in args.adapters]
    where = f"{args.device}, {torch.get_num_threads()} threads, {args.clock} clock, {args.dtype}"
    print(f"torch {torch.__version__}, peft {peft.__version__}, {where}; "
          f"B={args.batch} L={args.length} D={args.width} r={args.rank}, at {' '.join(args.targets)}")  # fmt: skip
    show(rows)
    keep(rows, args, peft=peft.__version__)


if __name__ == "__main__":
    main()
