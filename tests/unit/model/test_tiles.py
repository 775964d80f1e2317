"""Large pictures in n x n tiles beside a small one of the whole: pixels, prompt, hidden states and answers are those of the stock
processor and model of transformers; what a checkpoint asks for, what is refused, and that nothing changes without tiles."""

from __future__ import annotations

import doctest
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import Idefics3Processor, PreTrainedTokenizerFast, SmolVLMForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from atlas_dist.config import BackboneConfig
from atlas_dist.core.types import NO_TOKEN, Resample
from atlas_dist.data.decode import decode_into
from atlas_dist.errors import AtlasError, ConfigError, DataError
from atlas_dist.model.backbone import Backbone, load_backbone
from atlas_dist.model.backbone_facts import BackboneFacts, facts_of
from atlas_dist.model.backbone_refs import BackboneRef, backbone_ref
from atlas_dist.model.backbones import ARCHITECTURES, BackboneInput, PictureForm, rows_go_on, tiles
from atlas_dist.model.backbones.tiles import Cut
from atlas_dist.model.pixels import Normalise
from atlas_dist.model.preprocessor import form_of
from atlas_dist.model.tiling import MOST_TILES
from tests.kits.towers import saved, texts
from tests.kits.waits import no_host_sync

SIDE = 32
"""S of the random model."""
TOKENS = 4
"""That a tile becomes."""
TWO = [("is it", "a dog"), ("what?",)]
ASKED = {
    "do_convert_rgb": True,
    "do_image_splitting": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Idefics3ImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": SIDE},
    "resample": 1,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": 2 * SIDE},
}
"""As the released checkpoints have it, but for the sizes: theirs are 512 and 2048."""


def cut(count: int) -> Backbone:
    return load_backbone(backbone_ref("random-smolvlm", tiles=count))


@pytest.fixture(scope="module", params=[2, 3])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Of a checkpoint that asks for so many tiles, and for Lanczos' filter; in float64, where rounding hides nothing."""
    folder, count = tmp_path_factory.mktemp("checkpoint"), request.param
    ref = saved(folder, cut(count))
    (folder / "preprocessor_config.json").write_text(json.dumps(ASKED | {"size": {"longest_edge": count * SIDE}}))
    loaded = load_backbone(ref)
    loaded.model.double()
    return loaded


def test_examples() -> None:
    found = doctest.testmod(tiles)
    assert found.attempted and not found.failed


# --------------------------------------------------------------------------------------------------------------- pixels


def scene(width: int, height: int) -> Image.Image:
    """Waves, hard edges and noise, where a filter overshoots."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(width).integers(0, 60, (height, width, 3))
    edges = 255 * ((x // 7 + y // 5) % 2)
    waves = np.stack([100 + 80 * np.sin(x / 5), edges, 255 - edges], axis=-1)
    return Image.fromarray(np.clip(waves + noise - 30, 0, 255).astype(np.uint8))


def stock_tiles(picture: Image.Image, count: int, said: dict[str, Any], kind: Any = Idefics3ImageProcessorPil) -> Tensor:
    """What the stock processor makes of a picture, [n² + 1, 3, S, S]."""
    settings = {k: v for k, v in said.items() if k != "image_processor_type"} | {"size": {"longest_edge": count * SIDE}}
    found: Tensor = kind(**settings)(picture, return_tensors="pt")["pixel_values"][0]
    return found


def our_tiles(picture: Image.Image, count: int, form: PictureForm) -> Tensor:
    """The same by the way of the stream: decoded into one square, normalised, cut on the device."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    streamed = np.empty((count * SIDE, count * SIDE, 3), np.uint8)
    decode_into(memoryview(out.getvalue()), streamed, form.resample)
    pixels = Normalise(form.mean, form.std, torch.device("cpu"))(torch.from_numpy(streamed))
    return Cut(SIDE, form)(pixels[None])


def greys(pixels: Tensor, form: PictureForm) -> Tensor:
    mean, std = (torch.tensor(part)[:, None, None] for part in (form.mean, form.std))
    return 255 * (pixels * std + mean)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("resample", [1, 2, 3])
@pytest.mark.parametrize("side", [20, 64, 100, 300])
def test_tiles_and_the_small_picture_are_the_stock_ones_to_one_grey_level(side: int, resample: int, count: int) -> None:
    said = ASKED | {"resample": resample, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.5, 0.3, 0.25]}
    form = form_of(said, ARCHITECTURES["smolvlm"], SIDE, "mine", count)
    wanted = stock_tiles(scene(side, side), count, said)
    ours = our_tiles(scene(side, side), count, form)
    assert ours.shape == wanted.shape == (count**2 + 1, 3, SIDE, SIDE)
    assert float((greys(ours, form) - greys(wanted, form)).abs().max()) <= 1.001


@pytest.mark.parametrize("kind", [Idefics3ImageProcessorPil, SmolVLMImageProcessorPil])
@pytest.mark.parametrize(("width", "height"), [(200, 90), (40, 50), (30, 300)])
def test_a_picture_that_is_not_square_is_squashed_and_then_seen_as_stock_sees_that_square(
    width: int, height: int, kind: Any
) -> None:
    form = form_of(ASKED, ARCHITECTURES["smolvlm"], SIDE, "mine", 2)
    squashed = scene(width, height).resize((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
    difference = greys(our_tiles(scene(width, height), 2, form), form) - greys(stock_tiles(squashed, 2, ASKED, kind), form)
    assert float(difference.abs().max()) <= 1.001
    unsquashed = stock_tiles(scene(width, height), 2, ASKED, kind)
    assert (len(unsquashed) == 5) == (max(width, height) < 2 * min(width, height)), "stock cuts a grid of the picture's own ratio"


@pytest.mark.parametrize("resample", list(Resample))
@pytest.mark.parametrize("count", range(2, MOST_TILES + 1))
def test_the_small_picture_is_pillows(count: int, resample: Resample) -> None:
    """Of black and white noise, in which every filter overshoots, edges of the picture included."""
    form = PictureForm((0.5, 0.4, 0.3), (0.25, 0.5, 1.0), resample, count)
    side = count * SIDE
    noise = 255 * np.random.default_rng(0).integers(0, 2, (side, side, 3), np.uint8)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}
    wanted = torch.from_numpy(np.array(Image.fromarray(noise).resize((SIDE, SIDE), filters[resample]))).movedim(-1, 0)
    pixels = Normalise(form.mean, form.std, torch.device("cpu"))(torch.from_numpy(noise))
    made = Cut(SIDE, form)
    ours = greys(made.whole(pixels[None])[0], form)
    assert float((ours - wanted).abs().max()) <= 1.001
    assert float(((ours - wanted).abs() < 0.01).float().mean()) > 0.99, "but for sums that are half a grey level to rounding"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(greys(made.whole(pixels[None])[0], form), ours)


# --------------------------------------------------------------------------------------------------------------- prompt


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")


def released_tokenizer(folder: Path, *, joins_feeds: bool, named: int) -> None:
    """A tokenizer.json such as SmolVLM's; `joins_feeds`: two line feeds are one token; `named`: it has names for so many tiles a
    side."""
    merges = [("Ċ", "Ċ")] if joins_feeds else []
    special = (*SPECIAL, *tiles.names_of_tiles(named), "<image>")
    words = (*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges))
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, merges))
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    named_tokens = {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|im_end|>", "eos_token": "<end_of_utterance>"}
    named_tokens |= {"bos_token": "<|im_start|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named_tokens))


@pytest.mark.parametrize("joins_feeds", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_prompt_is_the_stock_processors_token_by_token(tmp_path: Path, count: int, joins_feeds: bool) -> None:
    cut(1).model.save_pretrained(tmp_path)
    released_tokenizer(tmp_path, joins_feeds=joins_feeds, named=3)
    loaded = load_backbone(BackboneRef("saved", str(tmp_path), architecture="smolvlm", tiles=count))
    pictures = Idefics3ImageProcessorPil(max_image_size={"longest_edge": SIDE}, size={"longest_edge": count * SIDE})
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    processor = Idefics3Processor(pictures, theirs, image_seq_len=TOKENS)
    question = "<|im_start|>User:<image>What is it?<end_of_utterance>\nAssistant:"
    wanted = processor(text=question, images=[scene(90, 90)], add_special_tokens=False)["input_ids"][0]
    text = loaded.tokenizer("What is it?", add_special_tokens=False)["input_ids"]
    assert prompt(loaded, text, loaded.tokenizer.convert_tokens_to_ids("<image>")) == wanted
    position = loaded.architecture.limits(loaded.model).text_tokens
    assert position == 160 - (len(wanted) - len(text)), "of what the language model reads, the rest is for texts"


def prompt(backbone: Backbone, text: list[int], picture: int) -> list[int]:
    """Token ids as the stock model wants them, the pictures' tokens named by their placeholder."""
    chat = backbone.chat
    assert chat is not None
    told = [*chat.before]
    for part in (*chat.between, chat.after_picture):
        told += [*[picture] * TOKENS, *part]
    return [*told, *text, *chat.after_text]


# ----------------------------------------------------------------------------------------------------------------- model


def pictures_of(backbone: Backbone, count: int = 2, seed: int = 0) -> Tensor:
    """Whole grey levels by chance, normalised."""
    side = backbone.image_size
    levels = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed))
    return normalised(levels, backbone.pictures).to(next(backbone.model.parameters()).dtype)


def normalised(levels: Tensor, form: PictureForm) -> Tensor:
    """Of grey levels, in float64."""
    mean, std = (torch.tensor(part, dtype=torch.float64)[:, None, None] for part in (form.mean, form.std))
    return (levels.double() / 255 - mean) / std


def stock_of(backbone: Backbone) -> SmolVLMForConditionalGeneration:
    stock = SmolVLMForConditionalGeneration(backbone.model.config).double()
    stock.load_state_dict(backbone.model.state_dict())
    return stock.eval()


def stock_input(backbone: Backbone, given: dict[str, Tensor], pixels: Tensor, row: int) -> dict[str, Tensor]:
    text = given["input_ids"][row][given["attention_mask"][row].bool()].tolist()
    ids = torch.tensor([prompt(backbone, text, backbone.model.config.image_token_id)])
    levels = greys(pixels[row], backbone.pictures).round().to(torch.uint8)
    form, n = backbone.pictures, backbone.pictures.tiles
    seen = stock_tiles(Image.fromarray(levels.movedim(0, -1).numpy()), n, ASKED)
    assert float((Cut(SIDE, form)(pixels[row][None]) - seen).abs().max()) < 1e-6, "no sum of this one is half a grey level"
    exact = normalised(greys(seen, form).round(), form)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": exact[None]}


@torch.no_grad()
def test_hidden_states_are_those_of_the_stock_model_with_the_stock_processor(backbone: Backbone) -> None:
    given, pixels, stock = texts(backbone, TWO), pictures_of(backbone), stock_of(backbone)
    (seen, hidden), pooled = backbone.encode_all(**given, pixel_values=pixels)
    rows = backbone.pictures.tiles**2 + 1
    assert seen.shape == (2, rows * 16, 48) and torch.equal(pooled, hidden[:, -1])
    for row in range(2):  # one is padded, and must not notice
        theirs = stock_input(backbone, given, pixels, row)
        wanted = stock.model(**theirs).last_hidden_state[0]
        torch.testing.assert_close(pooled[row], wanted[-1], rtol=0, atol=1e-5)
        before = backbone.sites[-1].before_text
        torch.testing.assert_close(hidden[row, :before], wanted[:before], rtol=0, atol=1e-5)
        tower = stock.model.vision_model(theirs["pixel_values"][0]).last_hidden_state
        torch.testing.assert_close(seen[row], tower.flatten(0, 1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_logits_of_a_known_answer_and_what_is_written_are_the_stock_models(backbone: Backbone) -> None:
    given, pixels, stock = texts(backbone, TWO), pictures_of(backbone), stock_of(backbone)
    decoder, chat = backbone.architecture.decoder, backbone.chat
    assert decoder is not None and chat is not None
    both = BackboneInput(**given, pixel_values=pixels)
    answers = torch.tensor([[50, 60, 70, 80], [90, 100, NO_TOKEN, NO_TOKEN]])
    logits, _ = decoder.teacher_forced(backbone.model, both, answers)
    written = decoder.greedy(backbone.model, both, 6, rows_go_on)
    for row in range(2):
        theirs, known = stock_input(backbone, given, pixels, row), answers[row][answers[row] != NO_TOKEN]
        ids = torch.cat([theirs["input_ids"], known[None]], dim=1)
        wanted = stock(input_ids=ids, pixel_values=theirs["pixel_values"]).logits[0, -len(known) - 1 : -1]
        torch.testing.assert_close(logits[row, : len(known)], wanted, rtol=1e-5, atol=1e-5)
        told = stock.generate(**theirs, max_new_tokens=6, do_sample=False, eos_token_id=chat.end, pad_token_id=0)
        assert written.tokens[row].tolist() == told[0, theirs["input_ids"].shape[1] :].tolist()


@torch.no_grad()
def test_every_tile_and_the_small_picture_are_seen_and_a_grey_one_is_a_tile(backbone: Backbone) -> None:
    given, pixels, n = texts(backbone, [("is it",)]), pictures_of(backbone, 1), backbone.pictures.tiles
    pooled = backbone.encode(**given, pixel_values=pixels)
    for row in range(n):
        for column in range(n):
            grey = pixels.clone()
            grey[:, :, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = 0.0
            other = backbone.encode(**given, pixel_values=grey)
            assert bool(torch.isfinite(other).all()) and not torch.allclose(other, pooled, atol=1e-3)
    swapped = torch.cat([pixels[..., SIDE:], pixels[..., :SIDE]], dim=-1)
    assert not torch.allclose(backbone.encode(**given, pixel_values=swapped), pooled, atol=1e-3)


def test_a_pass_never_waits_for_a_value(backbone: Backbone) -> None:
    given = texts(backbone, TWO)
    with torch.no_grad(), no_host_sync("cpu"):
        backbone.encode(**given, pixel_values=pictures_of(backbone))


# ---------------------------------------------------------------------------------------------- settings, digests, errors


def digest_without_tiles(backbone: Backbone) -> str:
    """As it was before there were tiles: its parts by name, no others."""
    digest, chat = hashlib.sha256(), backbone.chat
    assert chat is not None
    for name, value in sorted(backbone.model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    rules = json.loads(backbone.tokenizer.backend_tokenizer.to_str())
    rules = {name: part for name, part in rules.items() if name not in ("truncation", "padding")}
    passing = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "tie_word_embeddings"}

    def lasting(settings: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in settings.items() if name not in passing}
        return {name: lasting(value) if isinstance(value, dict) else value for name, value in kept.items()}

    asked = {name: getattr(chat, name) for name in ("before", "after_picture", "after_text", "before_answer", "end")}
    forms = [{name: getattr(form, name) for name in ("mean", "std", "resample")} for form in (backbone.own_pictures,) if form]
    for part in (rules, lasting(backbone.model.config.to_diff_dict()), *forms, asked):
        digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


def checkpoint(folder: Path, said: dict[str, Any] | None) -> BackboneRef:
    """The model of 2 x 2 tiles, saved; with a preprocessor_config.json where something is `said`."""
    ref = saved(folder, cut(2))
    file = folder / "preprocessor_config.json"
    file.unlink(missing_ok=True)
    if said is not None:
        file.write_text(json.dumps(said))
    return ref


def with_tiles(ref: BackboneRef, count: int | None) -> BackboneRef:
    return BackboneRef(ref.name, ref.source, architecture=ref.architecture, tiles=count)


@pytest.mark.parametrize("said", [None, {}, ASKED | {"do_image_splitting": False}, {**ASKED, "size": {"longest_edge": SIDE}}])
def test_without_tiles_nothing_changes(tmp_path: Path, said: dict[str, Any] | None) -> None:
    ref = checkpoint(tmp_path, said)
    whole = load_backbone(ref)
    assert (whole.pictures.tiles, whole.image_size, {site.rows for site in whole.sites}) == (1, SIDE, {1})
    assert whole.digest == digest_without_tiles(whole) == load_backbone(with_tiles(ref, 1)).digest


def test_a_checkpoint_says_how_many_tiles_and_a_user_may_say_otherwise(tmp_path: Path) -> None:
    ref = checkpoint(tmp_path, ASKED)
    asked, named, whole = (load_backbone(with_tiles(ref, count)) for count in (None, 2, 1))
    assert (asked.pictures.tiles, asked.image_size, asked.pictures.resample) == (2, 2 * SIDE, Resample.LANCZOS)
    assert asked.digest == named.digest != whole.digest
    assert whole.digest == digest_without_tiles(whole), "as it was when tiles were passed over"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ASKED | {"do_image_splitting": False}))
    assert load_backbone(ref).digest == whole.digest
    assert load_backbone(with_tiles(ref, 2)).digest == asked.digest
    assert {site.name[0]: site.rows for site in asked.sites} == {"V": 5, "T": 1}
    with torch.no_grad():
        given = texts(whole, TWO)
        small = asked.architecture.encode(asked.model, BackboneInput(**given, pixel_values=pictures_of(asked))).hidden[0]
        assert small.shape[1] == 5 * whole.encode_all(**given, pixel_values=pictures_of(whole)).hidden[0].shape[1]


def test_what_a_plan_knows_of_it_is_kept_apart_for_each_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ref = checkpoint(tmp_path / "checkpoint", ASKED)
    for count, found in ((None, 2), (1, 1), (2, 2)):
        first, again = facts_of(with_tiles(ref, count)), facts_of(with_tiles(ref, count))
        assert first == again == BackboneFacts.of(load_backbone(with_tiles(ref, count))) and first.tiles == found
    assert facts_of(with_tiles(ref, 1)).text_tokens > facts_of(ref).text_tokens


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_image_size": {"longest_edge": 64}}, "max_image_size=.*; tiles are squares of 32 pixels, as config.json says"),
        ({"max_image_size": None}, "max_image_size=null; tiles are squares of 32 pixels"),
        ({"size": {"longest_edge": 80}}, "size=.*; its longest_edge must be a multiple of a tile's 32 pixels"),
        ({"size": {"longest_edge": 16}}, "size=.*; its longest_edge must be a multiple of a tile's 32 pixels"),
        ({"size": None}, "size=null; its longest_edge must be a multiple of a tile's 32 pixels"),
    ],
)
def test_tiles_that_are_not_ours_are_refused_and_the_way_out_works(change: dict[str, Any], told: str) -> None:
    smolvlm = ARCHITECTURES["smolvlm"]
    with pytest.raises(DataError, match=f"preprocessor_config.json of backbone 'mine' has {told}") as refused:
        form_of(ASKED | change, smolvlm, SIDE, "mine")
    assert "or set backbone.tiles" in str(refused.value.fix)
    assert form_of(ASKED | change, smolvlm, SIDE, "mine", 1).tiles == 1


def fails(ref: BackboneRef) -> AtlasError:
    with pytest.raises(ConfigError) as failed:
        load_backbone(ref)
    return failed.value


@pytest.mark.parametrize("name", ["tiny", "random-clip", "random-siglip"])
def test_an_architecture_that_sees_whole_pictures_refuses_tiles(name: str) -> None:
    assert "sees whole pictures only" in str(fails(backbone_ref(name, tiles=2)))
    assert load_backbone(backbone_ref(name, tiles=1)).digest == load_backbone(name).digest


def test_a_number_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for count in (0, MOST_TILES + 1):
        assert f"{count} x {count} tiles" in str(fails(backbone_ref("random-smolvlm", tiles=count)))
        with pytest.raises(ValidationError):
            BackboneConfig(tiles=count)
    assert BackboneConfig(tiles=MOST_TILES).tiles == MOST_TILES
    asked = checkpoint(tmp_path, ASKED | {"size": {"longest_edge": 8 * SIDE}})
    assert "8 x 8 tiles" in str(fails(asked)), "a checkpoint's number too"


def test_a_tokenizer_without_names_for_the_tiles_is_refused(tmp_path: Path) -> None:
    told = fails(with_tiles(checkpoint(tmp_path, ASKED), 3))
    assert "3 x 3 tiles, but its tokenizer does not know <row_1_col_3>, <row_2_col_3>, <row_3_col_1>" in str(told)
    assert "to 1" in str(told.fix)


def test_tiles_that_leave_no_room_for_a_text_are_refused() -> None:
    told = fails(backbone_ref("random-smolvlm", tiles=MOST_TILES))
    assert f"no room for a text beside {MOST_TILES} x {MOST_TILES} tiles: 0 tokens are left" in str(told)
    assert f"below {MOST_TILES}" in str(told.fix)
