"""Make tests/parity/data/*.npz: small results of the naive oracle, for machines without those of the released code.

    python -m tests.parity.make_data

Each archive holds one random site in float64 (seeded, so that running this again gives the same numbers up to the last bits):
inputs `x` and `grad` (a gradient for the output), every adapter's tensors `param.<i>.<name>`, the mixture `mixed`, `alpha`
[B, T, A], and the gradients `grad.x` and `grad.<i>.<name>`. `CASES` says which; test_own_golden.py compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.oracle.naive_mixing import NaiveAdapter, naive_penalty, naive_site

DATA = Path(__file__).parent / "data"
BATCH, LENGTH, HEADS, WIDTH, RANK, COUNT = 2, 3, 2, 6, 2, 2
CASES: dict[str, dict[str, Any]] = {
    "whole": {"weighting": "whole"},
    "dimension": {"weighting": "dimension"},
    "plain": {"weighting": "plain"},
    "whole_figure": {"weighting": "whole", "attend_over": "input", "outer_residual": True},
    "dimension_input": {"weighting": "dimension", "attend_over": "input"},
}
ROWS = {"whole": 1, "dimension": 3, "plain": 0}


def make(name: str, seed: int) -> dict[str, np.ndarray]:
    """One archive's arrays."""
    options = CASES[name]
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double().requires_grad_()

    rows = ROWS[options["weighting"]]
    adapters = [
        NaiveAdapter(
            draw(RANK, WIDTH), draw(RANK), draw(WIDTH, RANK), draw(WIDTH),
            *([draw(rows, WIDTH), draw(rows, WIDTH)] if rows else []),
        )
        for _ in range(COUNT)
    ]  # fmt: skip
    x, grad = draw(BATCH, LENGTH, WIDTH), draw(BATCH, LENGTH, WIDTH)
    mixed, alphas = naive_site(x, adapters, heads=HEADS, **options)
    mixed.backward(grad.detach())
    arrays = {"x": x, "grad": grad, "mixed": mixed, "alpha": torch.stack(alphas, dim=1), "grad.x": x.grad}
    for i, adapter in enumerate(adapters):
        for field, value in vars(adapter).items():
            if value is not None:
                arrays |= {f"param.{i}.{field}": value, f"grad.{i}.{field}": value.grad}
    if rows:
        arrays["penalty"] = naive_penalty([a.query for a in adapters if a.query is not None])
    return {key: value.detach().numpy() for key, value in arrays.items()}


def main() -> None:
    DATA.mkdir(exist_ok=True)
    for seed, name in enumerate(CASES):
        np.savez_compressed(DATA / f"{name}.npz", **make(name, seed))
        print(DATA / f"{name}.npz", (DATA / f"{name}.npz").stat().st_size)


if __name__ == "__main__":
    main()
