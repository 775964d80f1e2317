"""What a training step could take at best on the machine that it is measured on: two limits, for `bench_step`.

- `pass`: forward, and the gradient down to the embeddings, of the frozen backbone alone, as this package runs it. A step with F
  times its FLOPs should take F times its time; what it takes more is in sites, head, optimizer and engine.
- `products`: the FLOPs of the step at the rate of the backbone's largest product, [B L, D] x [D, 4 D] and back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViltModel

from atlas_dist.model.vilt import uniform_pixel_mask
from tests.kits.step import Size


def backbone_pass(backbone: ViltModel, inputs: dict[str, Tensor]) -> Callable[[], Any]:
    """Forward, and backward to what comes out of the embeddings: no weight gets a gradient.

    Args:
        inputs: as a model reads them: `pixel_values` [B, 1, 3, H, W]; `input_ids`, `attention_mask`, `token_type_ids` [B, 1, S].
    """
    pixels = inputs["pixel_values"][:, 0]
    texts = {name: inputs[name][:, 0] for name in ("input_ids", "attention_mask", "token_type_ids")}

    def reached(_module: Any, _args: Any, out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (out[0].detach().requires_grad_(), *out[1:])

    def step() -> None:
        hook = backbone.embeddings.register_forward_hook(reached)
        try:
            pooled = backbone(**texts, pixel_values=pixels, pixel_mask=uniform_pixel_mask(pixels)).pooler_output
            pooled.float().sum().backward()
        finally:
            hook.remove()

    return step


def flops_of(step: Callable[[], Any]) -> float:
    """As torch counts them; a multiply and an add are two."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def products(size: Size, batch: int, device: torch.device, *, bf16: bool) -> tuple[Callable[[], Any], float]:
    """The two products of an MLP of the backbone over a batch's tokens, and their FLOPs."""
    kind = torch.bfloat16 if bf16 else torch.float32
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, kind)

    tokens, inner = drawn(batch * size.tokens, size.width), 4 * size.width
    up, down = drawn(size.width, inner), drawn(inner, size.width)

    def step() -> None:
        (tokens @ up) @ down

    return step, 2 * 2.0 * batch * size.tokens * size.width * inner
