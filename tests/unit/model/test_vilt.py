"""The accelerated ViLT equals the stock one: values, gradients, ragged masks; and it draws no random number."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import ViltConfig, ViltModel

from atlas_dist.model.vilt import accelerate_vilt, uniform_pixel_mask

SHARED = Path(os.environ.get("ATLAS_SHARED", Path(__file__).resolve().parents[4] / "shared"))
GOLDEN = SHARED / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden results at {GOLDEN} (set ATLAS_SHARED)")

PATCH, SIDE = 8, 32


def config(**changes: object) -> ViltConfig:
    settings: dict[str, object] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": SIDE,
        "patch_size": PATCH,
        "vocab_size": 40,
        "max_position_embeddings": 12,
        "modality_type_vocab_size": 3,
    }
    return ViltConfig(**settings | changes)


def model_pair(dtype: torch.dtype = torch.float64, **changes: object) -> tuple[ViltModel, ViltModel]:
    """(stock, accelerated) with the same weights; positions are far from zero, so that misplacing one shows."""
    torch.manual_seed(0)
    stock = ViltModel(config(**changes)).to(dtype).eval()
    with torch.no_grad():
        stock.embeddings.position_embeddings.normal_()
        stock.embeddings.cls_token.normal_()
    return stock, accelerate_vilt(copy.deepcopy(stock))


def inputs(height: int, width: int, batch: int = 4, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    words = torch.ones(batch, 7, dtype=torch.long)
    words[1, 4:] = 0
    return {
        "input_ids": torch.randint(1, 40, (batch, 7), generator=generator),
        "attention_mask": words,
        "token_type_ids": torch.randint(0, 2, (batch, 7), generator=generator),
        "pixel_values": torch.randn(batch, 3, height, width, generator=generator, dtype=dtype),
    }


def rectangles(height: int, width: int, sizes: list[tuple[int, int]]) -> Tensor:
    mask = torch.zeros(len(sizes), height, width, dtype=torch.long)
    for row, (tall, wide) in zip(mask, sizes, strict=True):
        row[:tall, :wide] = 1
    return mask


MASKS: dict[str, tuple[int, int, Callable[[Tensor], Tensor]]] = {
    "full, square": (32, 32, lambda x: torch.ones(len(x), 32, 32)),
    "full, wide": (24, 48, lambda x: torch.ones(len(x), 24, 48)),
    "full, one pixel": (24, 48, uniform_pixel_mask),
    "ragged": (40, 48, lambda _: rectangles(40, 48, [(40, 48), (32, 32), (24, 40), (8, 48)])),
    "ragged, none is largest": (48, 48, lambda _: rectangles(48, 48, [(48, 8), (8, 48), (16, 16), (24, 24)])),
    "one patch": (32, 32, lambda _: rectangles(32, 32, [(8, 8), (32, 32), (8, 16), (32, 8)])),
}


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("image_type", [1, 2])
def test_pooled_output_and_text_states_equal_the_stock_model(case: str, image_type: int) -> None:
    height, width, make_mask = MASKS[case]
    stock, fast = model_pair()
    batch = inputs(height, width)
    mask = make_mask(batch["pixel_values"])
    expected = stock(**batch, pixel_mask=mask, image_token_type_idx=image_type)
    result = fast(**batch, pixel_mask=mask, image_token_type_idx=image_type)
    torch.testing.assert_close(result.pooler_output, expected.pooler_output, rtol=0, atol=1e-13)
    # The stock model shuffles patches: text tokens and the class token keep their places and can be compared.
    torch.testing.assert_close(result.last_hidden_state[:, :8], expected.last_hidden_state[:, :8], rtol=0, atol=1e-13)
    assert result.last_hidden_state.shape == expected.last_hidden_state.shape


def test_without_a_mask_nothing_changes_either() -> None:
    stock, fast = model_pair()
    batch = inputs(32, 32)
    torch.testing.assert_close(fast(**batch).pooler_output, stock(**batch).pooler_output, rtol=0, atol=1e-13)


@pytest.mark.parametrize("case", ["full, wide", "ragged"])
def test_gradients_equal_the_stock_model(case: str) -> None:
    height, width, make_mask = MASKS[case]
    stock, fast = model_pair()
    batch = inputs(height, width)
    mask = make_mask(batch["pixel_values"])
    for model in (stock, fast):
        model(**batch, pixel_mask=mask).pooler_output.square().sum().backward()
    theirs = {name: parameter.grad for name, parameter in stock.named_parameters()}
    for name, parameter in fast.named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs[name], rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_valid_patches_come_row_major_and_padding_repeats_the_first_invalid_patch() -> None:
    stock, fast = model_pair()
    batch = inputs(40, 48)
    mask = MASKS["ragged"][2](batch["pixel_values"])
    tokens, valid, (index, grid) = fast.embeddings.visual_embed(batch["pixel_values"], mask, -1)
    their_tokens, their_valid, (their_index, their_grid) = stock.embeddings.visual_embed(batch["pixel_values"], mask, -1)
    assert grid == tuple(their_grid) == (5, 6)
    assert valid.dtype == their_valid.dtype
    for sample in range(len(mask)):
        count = int(valid[sample].sum()) - 1
        place = index[sample, :, 0] * 6 + index[sample, :, 1]
        assert place[:count].tolist() == sorted(place[:count].tolist())
        assert len(set(place[count:].tolist())) <= 1
        theirs = their_index[sample, :, 0] * 6 + their_index[sample, :, 1]
        where = {int(patch): slot for slot, patch in enumerate(theirs[:count])}
        order = [0] + [1 + where[int(patch)] for patch in place[:count]]
        torch.testing.assert_close(tokens[sample, : count + 1], their_tokens[sample, order], rtol=0, atol=1e-13)


def test_a_positive_limit_keeps_an_even_spread_of_patches() -> None:
    _, fast = model_pair(max_image_length=8)
    batch = inputs(32, 32)
    for mask in (torch.ones(4, 32, 32), rectangles(32, 32, [(32, 32), (32, 16), (16, 16), (8, 8)])):
        _, valid, (index, _) = fast.embeddings.visual_embed(batch["pixel_values"], mask, 8)
        assert valid.shape == (4, 9)
        first = (index[0, :, 0] * 4 + index[0, :, 1]).tolist()
        assert first == [0, 2, 4, 6, 8, 10, 12, 14]
        again = fast.embeddings.visual_embed(batch["pixel_values"], mask, 8)
        assert torch.equal(again[2][0], index)


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    stock, fast = model_pair(max_image_length=200)
    batch = inputs(40, 48)
    mask = MASKS["ragged"][2](batch["pixel_values"])
    torch.testing.assert_close(
        fast(**batch, pixel_mask=mask).pooler_output, stock(**batch, pixel_mask=mask).pooler_output, rtol=0, atol=1e-13
    )


def test_the_global_random_generator_is_left_alone() -> None:
    _, fast = model_pair()
    batch = inputs(40, 48)
    before = torch.get_rng_state()
    fast(**batch, pixel_mask=MASKS["ragged"][2](batch["pixel_values"]))
    fast(**inputs(32, 32))
    assert torch.equal(torch.get_rng_state(), before)


def test_attentions_are_still_given_to_whoever_asks() -> None:
    stock, fast = model_pair()
    batch = inputs(32, 32)
    attentions = fast(**batch, output_attentions=True).attentions
    assert len(attentions) == 2
    assert attentions[0].shape == stock(**batch, output_attentions=True).attentions[0].shape


def test_bfloat16_on_the_cpu_stays_close() -> None:
    stock, fast = model_pair(torch.float32)
    batch = inputs(32, 32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = fast(**batch).pooler_output
    torch.testing.assert_close(result.float(), stock(**batch).pooler_output, rtol=0, atol=2e-2)


def test_state_dict_names_do_not_change_and_weights_load_both_ways() -> None:
    stock, fast = model_pair()
    assert list(fast.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(fast.state_dict())
    fast.load_state_dict(stock.state_dict())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_clones_stay_accelerated_and_use_their_own_weights(clone: Callable[[ViltModel], ViltModel]) -> None:
    _, fast = model_pair()
    batch = inputs(32, 32)
    before = fast(**batch).pooler_output
    other = clone(fast)
    assert "visual_embed" in vars(other.embeddings)
    torch.testing.assert_close(other(**batch).pooler_output, before, rtol=0, atol=0)
    with torch.no_grad():
        other.embeddings.position_embeddings.add_(1)
        other.encoder.layer[0].attention.attention.query.weight.mul_(3)
    assert not torch.allclose(other(**batch).pooler_output, before)
    torch.testing.assert_close(fast(**batch).pooler_output, before, rtol=0, atol=0)


@needs_golden
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_golden_results_of_the_released_code(dtype: torch.dtype, tolerance: float) -> None:
    model = ViltModel(config(modality_type_vocab_size=2)).to(dtype).eval()
    weights = np.load(GOLDEN / "backbone.npz")
    model.load_state_dict({name: torch.from_numpy(weights[name]).to(dtype) for name in weights.files})
    accelerate_vilt(model)
    given = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "inputs.npz").items()}
    names = ("input_ids", "attention_mask", "token_type_ids")
    texts = {name: given[name].long() for name in names}
    pixels, mask = given["pixel_values"].to(dtype), given["pixel_mask"]

    def close(result: Tensor, name: str) -> None:
        torch.testing.assert_close(result, given[name].to(result.dtype), rtol=0, atol=tolerance)

    tokens, full_mask = model.embeddings(*texts.values(), pixels, mask, None, None)
    close(tokens, "embedding_output")
    # The embeddings hand on the finished mask, which is added to the scores: 0 where a token may be attended to.
    assert torch.equal((full_mask == 0).flatten(1).long(), given["full_mask"].long())
    result = model(**texts, pixel_values=pixels, pixel_mask=mask)
    close(result.pooler_output, "noadapter_pooled")
    close(result.last_hidden_state, "noadapter_last_hidden")
