"""How a backbone's layers are run: as they are, computed again on the way back instead of remembered, or compiled.

Both are set on the layers of a backbone *in place*, for the time that one job has it, and taken away again: the backbone is
shared by the jobs of a process. Neither touches parameters, their names, or what a layer means.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from atlas_dist.errors import TrainingError


@dataclass(frozen=True)
class LayerRuns:
    """How layers run while a job trains. Evaluations without gradients remember nothing anyway.

    Args:
        recompute: keep a layer's input only and compute the layer again in backward (activation checkpointing; Chen et al. 2016,
            arXiv 1604.06174). About a third more arithmetic, a layer's activations instead of the backbone's. The same numbers.
        compiled: run each layer through `torch.compile`. Fused kernels round differently: results may differ in the last bits.
            A decoder that writes runs its layers as they are: each token is a sequence of another length.
    """

    recompute: bool = False
    compiled: bool = False


AS_THEY_ARE = LayerRuns()


def run_layers(
    layers: Sequence[nn.Module], runs: LayerRuns, second_time: Callable[[], AbstractContextManager[Any]]
) -> Callable[[], None]:
    """Make `layers` run so; returns what undoes it.

    Args:
        second_time: entered while a layer is computed again, so that whoever listens in (the sites) does not hear it twice.

    Raises:
        TrainingError: a layer's way of running was changed already: another model has the backbone.
    """
    if any("forward" in vars(layer) for layer in layers):
        raise TrainingError("The backbone is in use: its layers run as another model asked.", fix="Close that model first.")
    if runs == AS_THEY_ARE:
        return lambda: None
    if runs.compiled:
        # All layers are one piece of code to the compiler, of which it makes 8 versions and then, silently, none any more.
        limit = 4 * len(layers)  # with and without gradients, whole and last batches
        compiler = torch._dynamo.config
        compiler.recompile_limit = max(compiler.recompile_limit, limit)
        compiler.accumulated_recompile_limit = max(compiler.accumulated_recompile_limit, 4 * limit)
    for layer in layers:
        forward: Callable[..., Any] = layer.forward
        if runs.compiled:
            forward = functools.partial(_unless_it_remembers, forward, torch.compile(forward))
        if runs.recompute:
            forward = functools.partial(_recomputed, forward, second_time)
        layer.forward = forward

    def undo() -> None:
        for layer in layers:
            vars(layer).pop("forward", None)
        if runs.compiled:
            torch._dynamo.reset()  # the next job's layers begin with all versions to come

    return undo


def _unless_it_remembers(as_it_is: Callable[..., Any], compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`compiled`, unless the layer is given the keys and values of what was read before, of which there are more each time."""
    return (compiled if kwargs.get("past_key_values") is None else as_it_is)(*args, **kwargs)


def _recomputed(
    forward: Callable[..., Any], second_time: Callable[[], AbstractContextManager[Any]], *args: Any, **kwargs: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,  # the backbone draws nothing: its dropout is 0
        determinism_check="none",  # it would compare shapes that ZeRO-3 takes away
        context_fn=lambda: (nullcontext(), second_time()),
        **kwargs,
    )
