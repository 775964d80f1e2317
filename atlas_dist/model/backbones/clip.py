"""CLIP (Radford et al. 2021, arXiv 2103.00020): a text tower and a picture tower that meet only in a
shared space, joined as `joined.py` says.

t is read at the text's last token, as in CLIP, but found by the attention mask. transformers looks for the first end token
instead: the same for one segment; of two it would not see the second.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.modeling_clip import CLIPAttention

from atlas_dist.errors import DataError
from atlas_dist.model.backbones.base import Architecture, BackboneInput, Encoded, Limits, Tower
from atlas_dist.model.backbones.joined import joined, tower_of


def _random(vocabulary: int, special: Mapping[str, int]) -> CLIPModel:
    """The towers differ in depth, width and heads, and the shared space is as wide as neither."""
    tower = {"hidden_act": "quick_gelu"}
    text = {
        **tower,
        "vocab_size": vocabulary,
        "max_position_embeddings": 48,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **{f"{name}_token_id": number for name, number in special.items()},
    }
    picture = {
        **tower,
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=picture, projection_dim=24))


def _prepare(model: CLIPModel) -> None:
    """Take away what belongs to CLIP's own training.

    No dropout (docs/method.md, What trains), whoever calls .train(): CLIP's attention keeps its rate as a number, not as a
    module. The temperature of its loss, which no loss of ours reads, stays in the weights but is no parameter: a method that
    trains the backbone would wait for its gradient, and DeepSpeed cannot broadcast a parameter without dimensions.
    """
    temperature = model.logit_scale.detach()
    del model.logit_scale
    model.register_buffer("logit_scale", temperature)
    for module in model.modules():
        if isinstance(module, CLIPAttention):
            module.dropout = 0.0


def _limits(model: CLIPModel) -> Limits:
    config = model.config
    text, picture = config.text_config, config.vision_config
    tokens, positions = int(text.vocab_size), int(text.max_position_embeddings)
    return Limits(3 * int(config.projection_dim), int(picture.image_size), positions, tokens)


def _towers(model: CLIPModel) -> tuple[Tower, ...]:
    """The sites are T0.aftattn, T0.aftmlp, T1.aftattn, … of the text and then V0.aftattn, … of the picture."""
    text, picture, shared = model.config.text_config, model.config.vision_config, model.config.projection_dim
    return (
        tower_of("T", "text_model.encoder.layers", text, reads_text=True, own_tokens=0, pooled=shared),
        tower_of(
            "V",
            "vision_model.encoder.layers",
            picture,
            reads_text=False,
            own_tokens=1 + (picture.image_size // picture.patch_size) ** 2,
            pooled=shared,
            patches="vision_model.embeddings.patch_embedding",
        ),
    )


def _encode(model: CLIPModel, given: BackboneInput) -> Encoded:
    if given.pixel_mask is not None:
        raise DataError("CLIP has no pixel mask: it sees whole pictures.", fix="Resize pictures instead of padding them.")
    text = model.text_model(input_ids=given.input_ids, attention_mask=_text_mask(given.attention_mask)).last_hidden_state
    picture = model.vision_model(pixel_values=given.pixel_values)
    t = model.text_projection(_last_token(text, given.attention_mask))
    v = model.visual_projection(picture.pooler_output)
    return Encoded((text, picture.last_hidden_state), joined(t, v))


def _text_mask(attention_mask: Tensor) -> Tensor:
    """Mask [B, T] of the real tokens, as the text tower should get it.

    transformers looks whether any token is padding, which makes the host wait for a GPU in every pass; a mask of pairs it takes
    as it is. On a CPU nothing waits, and results keep their bits.
    """
    return attention_mask if attention_mask.device.type == "cpu" else _causal_pairs(attention_mask)


def _causal_pairs(attention_mask: Tensor) -> Tensor:
    """Which token sees which, bool [B, 1, T, T]: itself and the real ones before it."""
    length = attention_mask.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    return earlier & attention_mask.bool()[:, None, None, :]


def _last_token(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Hidden states [B, T, D] at each row's last real token: [B, D]."""
    places = torch.arange(hidden.shape[1], device=hidden.device)
    last = (attention_mask * places).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


CLIP = Architecture(
    name="clip",
    model_class=CLIPModel,
    random=_random,
    prepare=_prepare,
    limits=_limits,
    towers=_towers,
    # The output of the attention projection and of the MLP's second linear layer, both before the residual (docs/method.md, Where
    # adapters sit).
    site_kinds={"aftattn": "self_attn.out_proj", "aftmlp": "mlp.fc2"},
    embeddings=("text_model.embeddings.", "vision_model.embeddings.", "vision_model.pre_layrnorm."),
    encode=_encode,
    # Of OpenAI's training pictures; the open reproductions of CLIP kept them.
    pixel_mean=(0.48145466, 0.4578275, 0.40821073),
    pixel_std=(0.26862954, 0.26130258, 0.27577711),
    # Constant buffers that old versions of transformers saved with the weights.
    leftovers=("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"),
    heads=("classifier.",),
)
