"""What this package has to know about an architecture of transformers before adapters can be hung on it.

An `Architecture` is data and a few functions on an *unmodified* model of transformers: where the adapter sites are, what the
lowest layers are, and how texts and pictures become one pooled vector. Everything else (loading, mixing, heads, methods, banks)
asks here and knows no architecture by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from atlas_dist.core.types import Resample
from atlas_dist.errors import ConfigError

Floats = tuple[float, float, float]


@dataclass(frozen=True)
class PictureForm:
    """How pictures become pixels.

    Attributes:
        mean, std: of pixels per channel, for values in [0, 1].
        resample: the filter that pictures are resized with.
        tiles: n, where a picture is cut into n x n tiles, which a small one of the whole follows; 1 = it is seen whole, once.
    """

    mean: Floats
    std: Floats
    resample: Resample = Resample.BICUBIC
    tiles: int = 1


@dataclass(frozen=True)
class AdapterSite:
    """A place for adapters: a linear layer whose output is what its sublayer adds to the residual stream (docs/method.md, Where
    adapters sit).

    Attributes:
        name: such as "L0.aftattn": a letter for the tower, the layer's number, what it comes after.
        path: the module's path in the model.
        width: D of this site: its output features, of its adapters, queries and keys. Towers may differ.
        heads: H of this site, into which its queries' attention is cut.
        text_first: the tokens at this site begin with the text's, behind `before_text` others; False where it sees none of them.
        before_text: how many tokens of a fixed number come first.
        rows: as `Architecture.rows_at`.
    """

    name: str
    path: str
    width: int
    heads: int
    text_first: bool = True
    before_text: int = 0
    rows: int = 1


@dataclass(frozen=True)
class BackboneInput:
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
    """`hidden`: last hidden states of each tower, [B, L, D] with its own L and D, those of a picture's tiles one after the other;
    `pooled` [B, P]: what heads read."""

    hidden: tuple[Tensor, ...]
    pooled: Tensor


@dataclass(frozen=True)
class Limits:
    """What a model of an architecture takes and gives.

    Attributes:
        pooled: P of its pooled output.
        image_size: side in pixels of its square pictures, all tiles of one together.
        text_tokens: most text tokens, with the special ones.
        vocabulary: different tokens.
        padded_text: tokens that every text is padded to, whatever its task has at most; 0 = to that.
        picture_rows: rows that one picture becomes where tiles are seen one by one (`Tiling.parts`); 1 = it is not cut.
    """

    pooled: int
    image_size: int
    text_tokens: int
    vocabulary: int
    padded_text: int = 0
    picture_rows: int = 1


@dataclass(frozen=True)
class Tower:
    """One stack of transformer layers of a model.

    Attributes:
        letter: what the names of its sites begin with.
        layers: path of its `nn.ModuleList`.
        width, inner, heads: D, the width inside its MLPs, H.
        reads_text: its tokens begin with the text's.
        own_tokens: how many tokens it has besides, in one row.
        pooled: width of the product that its pooled token goes through; 0 = none.
        patches: path of the convolution that makes its tokens of patches; "" = it sees no picture.
        class_tokens: how many of the tokens that it has besides the text's are no patches; 0 where it sees no picture.
        attention_pooling: path of an `nn.MultiheadAttention` with one learnt query, over all tokens, and of an MLP as wide as
            the layers' behind it; "" = its pooled token is one of its own.
        before_text: how many of its own tokens come before the text's.
        site_kinds: as `Architecture.site_kinds`, of a tower whose layers have other names; {} = those.
        key_value_heads: heads of its keys and values, where several heads of queries share one; 0 = `heads`.
        gated: its MLPs have a third linear layer, whose output gates the first one's.
        fed: what it reads comes out of a tower before it, so that gradients go on to that one.
    """

    letter: str
    layers: str
    width: int
    inner: int
    heads: int
    reads_text: bool
    own_tokens: int
    pooled: int
    patches: str = ""
    class_tokens: int = 1
    attention_pooling: str = ""
    before_text: int = 0
    site_kinds: Mapping[str, str] = field(default_factory=dict)
    key_value_heads: int = 0
    gated: bool = False
    fed: bool = False


@dataclass(frozen=True)
class Chat:
    """How a decoder is asked: token ids around a picture and a text, as its chat template puts them. The answer follows.

    Attributes:
        before: what comes before the picture.
        after_picture: between picture and text.
        after_text: between text and answer; at least one token.
        before_answer: what an answer's text is written behind, such as a space.
        end: id of the token that ends an answer.
        question_end: what stands, as text, between an earlier question of a conversation and its answer.
        answer_end: between that answer and the next question.
        between: what stands between one tile of a picture and the next, where it is cut.
    """

    before: tuple[int, ...]
    after_picture: tuple[int, ...]
    after_text: tuple[int, ...]
    before_answer: str
    end: int
    question_end: str = ""
    answer_end: str = ""
    between: tuple[tuple[int, ...], ...] = ()


GoesOn = Callable[[Tensor], bool]
"""Which rows of a batch are not at their end, bool [B] -> whether another token is to be written."""


def rows_go_on(going: Tensor) -> bool:
    """A `GoesOn`: until all rows of this batch have ended."""
    return bool(going.any())


class Written(NamedTuple):
    """B answers of at most M tokens. `tokens` int64 [B, M]: the last one of each ends it, where it was ended, and what is behind
    that is `NO_TOKEN`; `log_probs` [B, M] in nats, 0 there, float32 at least."""

    tokens: Tensor
    log_probs: Tensor


@dataclass(frozen=True, eq=False)
class Decoder:
    """How a model of an architecture writes. `given` is a `BackboneInput`, without the answer.

    Attributes:
        teacher_forced: model, given, answers int64 [B, M] (`NO_TOKEN` behind their ends) -> logits [B, M, V] of each token of an
            answer, the right ones before it being known, and the pooled output [B, P] as `Architecture.encode` has it. Gradients
            flow.
        greedy: model, given, M, a `GoesOn` that is asked after each token -> what it writes, the likeliest token after the
            other. Every row's numbers are its own, whatever goes on beside it.
    """

    teacher_forced: Callable[[Any, BackboneInput, Tensor], tuple[Tensor, Tensor]]
    greedy: Callable[[Any, BackboneInput, int, GoesOn], Written]


@dataclass(frozen=True, eq=False)
class Tiling:
    """How an architecture sees a large picture: cut into n x n tiles, with a small one of the whole.

    Attributes:
        cut: makes a prepared model cut its pictures so, from then on; for n >= 2.
        tokens: n -> what its tokenizer must know besides `Architecture.special_tokens`.
        parts: what the paths of the modules begin with that see every tile as a row of its own, a sample's one after the other.
    """

    cut: Callable[[Any, PictureForm], None]
    tokens: Callable[[int], tuple[str, ...]]
    parts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Architecture:
    """One architecture. Functions take a model of its own kind, `model_class`.

    Attributes:
        name: `model_type` in a checkpoint's config.json, and the value of `backbone.architecture`.
        model_class: the class of transformers, with `from_pretrained`.
        random: vocabulary size and ids of the special tokens ("pad", "bos", "eos") -> a tiny model of random weights, from
            torch's global generator.
        limits: see `Limits`.
        towers: all stacks of layers, in the order they run.
        site_kinds: what sites are called -> path of their linear layer below a transformer layer, in the order data flows.
        embeddings: what the names of the parameters below the lowest layers begin with.
        encode: one pass; gradients flow.
        pixel_mean, pixel_std: per channel, for pixels in [0, 1], of checkpoints that do not say otherwise.
        prepare: gives a loaded model what its checkpoint lacks; what it does is part of the digest.
        accelerate: makes a model faster in place and changes no result but by rounding.
        leftovers: keys that checkpoints of any model of this kind may bring and we do not load.
        heads: what the names of parameters begin with that models for a task put on top of this one, and we do not load.
        image_types: how many pictures of a sample it can tell apart.
        plain_tokenizer: tokenizer.json is the tokenizer, whichever class of transformers a checkpoint names besides.
        prepare_tokenizer: gives a loaded tokenizer what its checkpoint lacks; what it does is part of the digest.
        squashes: its own preprocessing makes squares of whole pictures, as ours does; elsewhere ours differs from it.
        relatives: `model_type` of models that are easily taken for this one -> what to do instead.
        special_tokens: what its tokenizer must know; the random model's is given them.
        chat: puts into a loaded model how it is asked, by its tokenizer, and says it: it is part of the digest.
        decoder: how it writes; None = it does not.
        tiling: how it sees large pictures in tiles; None = it does not.
    """

    name: str
    model_class: Any
    random: Callable[[int, Mapping[str, int]], nn.Module]
    limits: Callable[[Any], Limits]
    towers: Callable[[Any], tuple[Tower, ...]]
    site_kinds: Mapping[str, str]
    embeddings: tuple[str, ...]
    encode: Callable[[Any, BackboneInput], Encoded]
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    prepare: Callable[[Any], None] = lambda _: None
    accelerate: Callable[[Any], None] = lambda _: None
    leftovers: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    image_types: int = 1
    plain_tokenizer: bool = False
    prepare_tokenizer: Callable[[Any], None] = lambda _: None
    squashes: bool = False
    relatives: Mapping[str, str] = field(default_factory=dict)
    special_tokens: tuple[str, ...] = ()
    chat: Callable[[Any, PreTrainedTokenizerFast], Chat] | None = None
    decoder: Decoder | None = None
    tiling: Tiling | None = None

    def rows_at(self, model: nn.Module, path: str) -> int:
        """How many rows of a module's input and output one sample takes in a pass: more than one where tiles are rows."""
        return self.limits(model).picture_rows if self.tiling is not None and path.startswith(self.tiling.parts) else 1

    def layers(self, model: nn.Module) -> list[nn.Module]:
        """All transformer layers, tower by tower."""
        return [layer for tower in self.towers(model) for layer in stack(model, tower)]

    def sites(self, model: nn.Module) -> tuple[AdapterSite, ...]:
        """All adapter sites in the order data flows."""
        rows = {t.letter: self.rows_at(model, f"{t.layers}.") for t in self.towers(model)}
        return tuple(
            AdapterSite(
                f"{t.letter}{n}.{kind}", f"{t.layers}.{n}.{below}", t.width, t.heads, t.reads_text, t.before_text, rows[t.letter]
            )
            for t in self.towers(model)
            for n in range(len(stack(model, t)))
            for kind, below in (t.site_kinds or self.site_kinds).items()
        )

    def kept(self, model: nn.Module, layers: int) -> frozenset[str]:
        """Names of the parameters of the lowest `layers` layers of each tower and of the embeddings below them; none for 0.

        Raises:
            ConfigError: a tower would have no layer left.
        """
        for tower in self.towers(model):
            depth = len(stack(model, tower))
            if layers >= depth:
                raise ConfigError(f"The backbone has {depth} layers; {layers} of them can't stay frozen below the others.")
        lowest = tuple(f"{tower.layers}.{number}." for tower in self.towers(model) for number in range(layers))
        below = (*self.embeddings, *lowest) if layers else ()
        return frozenset(name for name, _ in model.named_parameters() if name.startswith(below))


def stack(model: nn.Module, tower: Tower) -> nn.ModuleList:
    """The layers of one tower."""
    return cast(nn.ModuleList, model.get_submodule(tower.layers))
