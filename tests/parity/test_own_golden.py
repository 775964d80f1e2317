"""Results of the naive oracle (tests/parity/make_data.py): they stand in where those of the released code are absent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from atlas_dist.model.mixing import MixingSite, ortho_penalty
from atlas_dist.model.mixing_spec import AttendOver, MixingSpec, Weighting
from tests.parity.make_data import CASES, COUNT, DATA, HEADS, RANK, ROWS, WIDTH, make

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.mark.parametrize("name", CASES)
def test_the_files_are_what_the_oracle_says(name: str) -> None:
    with np.load(DATA / f"{name}.npz") as stored:
        made = make(name, list(CASES).index(name))
        assert set(stored.files) == set(made)
        for key in made:
            np.testing.assert_allclose(stored[key], made[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_cheap_form_agrees(name: str, grows: bool, dtype: torch.dtype) -> None:
    options = CASES[name]
    spec = MixingSpec(
        rank=RANK,
        weighting=Weighting(options["weighting"]),
        attend_over=AttendOver(options.get("attend_over", "output")),
        outer_residual=options.get("outer_residual", False),
        query_rows=max(1, ROWS[options["weighting"]]),
    )
    with np.load(DATA / f"{name}.npz") as arrays:
        golden = {key: torch.from_numpy(arrays[key]).to(dtype) for key in arrays.files}
    site = MixingSite(WIDTH, HEADS, spec, visible=COUNT - grows, grows=grows, generator=torch.Generator().manual_seed(0)).to(
        dtype
    )
    slots = [(group, i) for group in site.groups() for i in range(group.count)]
    for number, (group, i) in enumerate(slots):
        for field, parameter in group.named_parameters():
            parameter.data[i].copy_(golden[f"param.{number}.{field}"].view_as(parameter[i]))

    def check(actual: Tensor, key: str) -> None:
        torch.testing.assert_close(actual, golden[key].view_as(actual), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])

    x = golden["x"].requires_grad_()
    output = site(x)
    output.mixed.backward(golden["grad"])
    check(output.mixed, "mixed")
    check(output.alpha, "alpha")
    check(x.grad, "grad.x")
    for number, (group, i) in enumerate(slots):
        for field, parameter in group.named_parameters():
            check(parameter.grad[i], f"grad.{number}.{field}")
    if "penalty" in golden:
        check(ortho_penalty(torch.cat([group.query for group in site.groups()])), "penalty")
