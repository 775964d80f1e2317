"""What this package has to know about an architecture of transformers before adapters can be hung on it.

An `Architecture` is data and a few functions on an *unmodified* model of transformers: where the adapter sites are, what the
lowest layers are, and how texts and pictures become one pooled vector. Everything else (loading, mixing, heads, methods, banks)
asks here and knows no architecture by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from atlas_dist.errors import ConfigError


@dataclass(frozen=True)
class AdapterSite:
    """A place for adapters: a linear layer whose output is what its sublayer adds to the residual stream (METHOD.md).

    Attributes:
        name: such as "L0.aftattn": a letter for the tower, the layer's number, what it comes after.
        path: the module's path in the model.
        width: D of this site: its output features, of its adapters, queries and keys. Towers may differ.
        heads: H of this site, into which its queries' attention is cut.
        text_first: the tokens at this site begin with the text's; False where it sees none of them.
    """

    name: str
    path: str
    width: int
    heads: int
    text_first: bool = True


@dataclass(frozen=True)
class TrunkInput:
    """B rows for one pass: a text and a picture each.

    Attributes:
        input_ids, attention_mask: int64 [B, T], padded on the right.
        pixel_values: [B, 3, H, W], normalised as the architecture says.
        token_type_ids: int64 [B, T]; None = all 0.
        pixel_mask: [B, H, W], 1 where a pixel is real; None = all are.
        image_type: which picture of a sample it is, 1 or 2; an int64 [B] where rows differ.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor
    token_type_ids: Tensor | None = None
    pixel_mask: Tensor | None = None
    image_type: int | Tensor = 1


class Encoded(NamedTuple):
    """`hidden`: last hidden states of each tower, [B, L, D] with its own L and D; `pooled` [B, P]: what heads read."""

    hidden: tuple[Tensor, ...]
    pooled: Tensor


@dataclass(frozen=True)
class Limits:
    """What a model of an architecture takes and gives: P of its pooled output, side in pixels of its square pictures, most text
    tokens with the special ones."""

    pooled: int
    image_size: int
    text_tokens: int


@dataclass(frozen=True)
class Tower:
    """What one pass of one sample goes through, for counting its arithmetic (model/flops.py): L tokens of width D through
    `layers` layers with an MLP of width `inner`; `embedding`: FLOPs of the patches' projection."""

    tokens: int
    width: int
    inner: int
    layers: int
    embedding: float


@dataclass(frozen=True, eq=False)
class Architecture:
    """One architecture. Functions take a model of its own kind, `model_class`.

    Attributes:
        name: `model_type` in a checkpoint's config.json, and the value of `backbone.architecture`.
        model_class: the class of transformers, with `from_pretrained`.
        leftovers: keys that checkpoints of any model of this kind may bring and we do not load.
        random: vocabulary size and ids of the special tokens ("pad", "bos", "eos") -> a tiny model of random weights, from
            torch's global generator.
        prepare: gives a loaded model what its checkpoint lacks; what it does is part of the digest.
        accelerate: makes a model faster in place and changes no result but by rounding.
        limits: see `Limits`.
        sites: all adapter sites in the order data flows.
        kept: names of the parameters that a method which trains the trunk leaves alone when the lowest k layers (and the
            embeddings below them) stay; for k = 0 those that nothing of ours reads. ConfigError: no layer would be left.
        encode: one pass; gradients flow.
        pixel_mean, pixel_std: per channel, for pixels in [0, 1].
        image_types: how many pictures of a sample it can tell apart.
        tower: text tokens -> the one tower that they and the picture's patches go through; None = its FLOPs are not counted.
    """

    name: str
    model_class: Any
    random: Callable[[int, Mapping[str, int]], nn.Module]
    limits: Callable[[Any], Limits]
    sites: Callable[[Any], tuple[AdapterSite, ...]]
    kept: Callable[[Any, int], frozenset[str]]
    encode: Callable[[Any, TrunkInput], Encoded]
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    prepare: Callable[[Any], None] = lambda _: None
    accelerate: Callable[[Any], None] = lambda _: None
    leftovers: tuple[str, ...] = ()
    image_types: int = 1
    tower: Callable[[Any, int], Tower] | None = None


def layers_of(model: nn.Module, sites: Sequence[AdapterSite]) -> list[nn.Module]:
    """The layers that hold the sites, each once, in order: a site's path up to its first number."""
    paths = []
    for site in sites:
        parts = site.path.split(".")
        number = next(i for i, part in enumerate(parts) if part.isdigit())
        paths.append(".".join(parts[: number + 1]))
    return [model.get_submodule(path) for path in dict.fromkeys(paths)]


def tower_sites(
    model: Any, letter: str, layers: str, kinds: Mapping[str, str], *, heads: int, text_first: bool
) -> list[AdapterSite]:
    """The sites of one stack of layers: `kinds` (name -> path below a layer), layer by layer, of the modules below `layers`."""
    sites = []
    for layer in range(len(model.get_submodule(layers))):
        for kind, below in kinds.items():
            path = f"{layers}.{layer}.{below}"
            width = int(model.get_submodule(path).out_features)
            sites.append(AdapterSite(f"{letter}{layer}.{kind}", path, width, heads, text_first))
    return sites


def named_below(model: nn.Module, prefixes: tuple[str, ...]) -> frozenset[str]:
    """Names of the parameters that begin with one of `prefixes`."""
    return frozenset(name for name, _ in model.named_parameters() if name.startswith(prefixes))


def check_layers_left(depth: int, frozen: int) -> None:
    """Raises ConfigError unless a tower of `depth` layers has some left above its `frozen` lowest."""
    if frozen >= depth:
        raise ConfigError(f"The trunk has {depth} layers; {frozen} of them can't stay frozen below the others.")
