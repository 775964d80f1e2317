"""How many operators a training step is made of: on a GPU each of them that computes is a launch at least, and small ones cost
their launch. `python -m tests.bench.count_ops --size narrow-12 --bf16`

Counted below autograd by a dispatch mode, on the CPU: forward, backward (DeepSpeed adds up the ranks' gradients in it) and step
apart, for both forms of ATLAS. Views and empty allocations launch nothing and are not counted. The optimizer updates all tensors
of a group together, as on a GPU; such an update counts once however many tensors it has. `narrow-12` has as many layers as ViLT-B
and so as many operators; how wide they are is not in the count.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from atlas_dist.core.types import Budget, Role
from atlas_dist.model.mixing_spec import MixingSpec
from atlas_dist.model.trained import optimizer_groups
from atlas_dist.train.engine import EngineSettings, build_engine, join_alone, prepare_process
from atlas_dist.train.feed import ModelBatch
from atlas_dist.train.module import StageModule
from tests.kits.step import FORMS, SIZES, new_feeder, open_model, random_backbone, random_batches

NO_KERNEL = {
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "detach", "promote_types"),
    *("_local_scalar_dense", "is_same_size", "_record_function_enter_new", "_record_function_exit"),
}


class Count(TorchDispatchMode):
    """Operators that compute, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NO_KERNEL:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def counted(engine: Any, part: ModelBatch) -> dict[str, Counter[str]]:
    """Of one step, part by part."""
    parts: dict[str, Counter[str]] = {}
    with Count() as count:
        losses, _, _, penalty = engine(part.inputs, part.target)
        loss = torch.where(part.mask, losses, torch.zeros_like(losses)).sum() + 0.1 * penalty
        parts["forward"], count.found = count.found, Counter()
        engine.backward(loss)
        parts["backward"], count.found = count.found, Counter()
        engine.step()
        parts["step"] = count.found
    return parts


def row(args: argparse.Namespace, form: str, stage: str, adapters: int) -> dict[str, Any]:
    """One form and stage at T visible adapters."""
    size, (weighting, stages) = SIZES[args.size], FORMS[form]
    backbone = random_backbone(size, torch.device("cpu"), bf16=args.bf16)
    spec = MixingSpec(rank=size.rank, weighting=weighting)
    roles = [role for role in stages[stage] if adapters or role is not Role.COEFFICIENTS]
    with open_model(backbone, size, adapters, roles, spec=spec) as model:
        module = StageModule(model, model.head_spec, bf16=args.bf16).train()
        budget = Budget()
        groups = optimizer_groups(
            model, lr=budget.lr, query_lr_scale=budget.query_lr_scale, weight_decay=budget.weight_decay, coefficient_lr=budget.lr
        )
        engine = build_engine(module, groups, EngineSettings(args.zero, args.batch, 1, budget, 100))
        for group in engine.optimizer.param_groups:
            group["foreach"] = True
        (batch,) = random_batches(size, args.batch, 1)
        (part,) = new_feeder(torch.device("cpu"))(batch, args.batch)
        counted(engine, part)  # the first step makes the moments
        parts = counted(engine, part)
        trained = len(list(engine.module.parameters()))
        engine.destroy()
    total = sum(map(Counter.total, parts.values()))
    most = sum(parts.values(), Counter()).most_common(args.top)
    return {
        "form": form,
        "stage": stage,
        "T": adapters,
        "tensors": trained,
        **{k: v.total() for k, v in parts.items()},
        "all": total,
        "most": most,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="tiny", choices=list(SIZES))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16, as on a GPU")
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 1, 4, 8])
    parser.add_argument("--top", type=int, default=12, help="operators that are named")
    parser.add_argument("--zero", type=int, default=0)
    args = parser.parse_args()
    prepare_process()
    join_alone()
    for form, (_, stages) in FORMS.items():
        for stage in stages:
            for adapters in args.adapters:
                # Without an earlier adapter stage one trains nothing but the head.
                print(json.dumps(row(args, form, stage, adapters)), flush=True)


if __name__ == "__main__":
    main()
