"""SigLIP and SigLIP 2 (Zhai et al. 2023, arXiv 2303.15343; Tschannen et al. 2025, arXiv 2502.14786) of one fixed resolution: a
text tower and a picture tower that meet only in a shared space, joined as `joined.py` says.

The embeddings are those of the released models:

    t   the hidden state at the last of all positions, padding or not, through a linear layer
    v   a learnt query attends over the patches (there is no class token), and an MLP follows

Texts have as many tokens as there are positions (64): they were padded to that length in training, and nothing was masked. So
the text tower sees the padding and is read at it, and a text of another length would be another input. Texts were in lower
case. The checkpoints of SigLIP 2 say so in tokenizer_config.json (`do_lower_case`), but name a class of tokenizer there that
does not do it; those of SigLIP name one that reads SentencePiece files. Hence tokenizer.json is read as it stands, and told to
lower the case where it does not.

SigLIP 2's other kind, NaFlex, takes pictures of any shape as lists of patches, with a mask: another model (`Siglip2Model`).
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel
from transformers.models.siglip.modeling_siglip import SiglipAttention

from atlas_dist.errors import ConfigError, DataError
from atlas_dist.model.backbones.base import Architecture, BackboneInput, Encoded, Limits, Tower
from atlas_dist.model.backbones.joined import joined, tower_of

_WHICH = "a checkpoint of fixed resolution, such as google/siglip2-base-patch16-224, or of the original SigLIP"


def _random(vocabulary: int, special: Mapping[str, int]) -> SiglipModel:
    """The towers differ in depth, width and heads, as those of SigLIP 2's largest do."""
    text = {
        "vocab_size": vocabulary,
        "max_position_embeddings": 48,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_size": 48,
        **{f"{name}_token_id": number for name, number in special.items()},
    }
    picture = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
    }
    return SiglipModel(SiglipConfig(text_config=text, vision_config=picture))


def _prepare(model: SiglipModel) -> None:
    """Take away what belongs to SigLIP's own training.

    No dropout (docs/method.md, What trains), whoever calls .train(): its attention keeps its rate as a number, not as a module.
    Temperature and bias of its loss, which no loss of ours reads, stay in the weights but are no parameters: a method that
    trains the backbone would wait for their gradients.

    Raises:
        ConfigError: the picture tower has no pooling, or the embeddings are not of one width: half a SigLIP, of another model.
    """
    text, picture = model.config.text_config, model.config.vision_config
    if not picture.vision_use_head:
        raise ConfigError(
            "The picture tower of this SigLIP has no pooling head (vision_use_head is false): it gives no embedding.",
            fix=f"Use all of {_WHICH}.",
        )
    if text.projection_size != picture.hidden_size:
        raise ConfigError(
            f"The text embeddings of this SigLIP are {text.projection_size} wide, those of its pictures {picture.hidden_size}.",
            fix=f"Use all of {_WHICH}.",
        )
    for name in ("logit_scale", "logit_bias"):
        value = getattr(model, name).detach()
        delattr(model, name)
        model.register_buffer(name, value)
    for module in model.modules():
        if isinstance(module, SiglipAttention):
            module.dropout = 0.0


def _lower_case(tokenizer: PreTrainedTokenizerFast) -> None:
    """Make a tokenizer lower the case where it does not, unless its settings say that it shall not."""
    rules = tokenizer.backend_tokenizer
    own = rules.normalizer
    if not tokenizer.init_kwargs.get("do_lower_case", True) or (own is not None and own.normalize_str("Aa") == "aa"):
        return
    rules.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([own] if own is not None else [])])


def _limits(model: SiglipModel) -> Limits:
    text, picture = model.config.text_config, model.config.vision_config
    tokens, positions = int(text.vocab_size), int(text.max_position_embeddings)
    return Limits(3 * int(picture.hidden_size), int(picture.image_size), positions, tokens, padded_text=positions)


def _towers(model: SiglipModel) -> tuple[Tower, ...]:
    """The sites are T0.aftattn, T0.aftmlp, T1.aftattn, … of the text and then V0.aftattn, … of the picture."""
    text, picture = model.config.text_config, model.config.vision_config
    return (
        tower_of("T", "text_model.encoder.layers", text, reads_text=True, own_tokens=0, pooled=text.projection_size),
        tower_of(
            "V",
            "vision_model.encoder.layers",
            picture,
            reads_text=False,
            own_tokens=(picture.image_size // picture.patch_size) ** 2,
            pooled=0,
            patches="vision_model.embeddings.patch_embedding",
            class_tokens=0,
            attention_pooling="vision_model.head",
        ),
    )


def _encode(model: SiglipModel, given: BackboneInput) -> Encoded:
    if given.pixel_mask is not None:
        raise DataError("SigLIP has no pixel mask: it sees whole pictures.", fix="Resize pictures instead of padding them.")
    length, positions = given.input_ids.shape[1], _limits(model).text_tokens
    if length != positions:
        raise DataError(
            f"SigLIP reads texts of {positions} tokens, padding included; these have {length}.",
            fix=f"Pad them with the tokenizer's padding token (data/decode.py: TextEncoder(…, padded={positions})).",
        )
    # Without the attention mask, as it was trained.
    text = model.text_model(input_ids=given.input_ids)
    picture = model.vision_model(pixel_values=given.pixel_values)
    return Encoded((text.last_hidden_state, picture.last_hidden_state), joined(text.pooler_output, picture.pooler_output))


SIGLIP = Architecture(
    name="siglip",
    model_class=SiglipModel,
    random=_random,
    prepare=_prepare,
    limits=_limits,
    towers=_towers,
    # The output of the attention projection and of the MLP's second linear layer, both before the residual (docs/method.md, Where
    # adapters sit).
    site_kinds={"aftattn": "self_attn.out_proj", "aftmlp": "mlp.fc2"},
    embeddings=("text_model.embeddings.", "vision_model.embeddings."),
    encode=_encode,
    pixel_mean=(0.5, 0.5, 0.5),
    pixel_std=(0.5, 0.5, 0.5),
    squashes=True,
    plain_tokenizer=True,
    prepare_tokenizer=_lower_case,
    # Constant buffers that old versions of transformers saved with the weights.
    leftovers=("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"),
    relatives={"siglip2": f"That is SigLIP 2 of variable resolution (NaFlex), which is not read: use {_WHICH}."},
)
