"""Right answers become tokens, written ones texts, and the two are compared as a person would."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atlas_dist.core.types import NO_TOKEN, TaskKind, TaskSpec
from atlas_dist.data.pack import run_pack
from atlas_dist.data.stream import open_stream
from atlas_dist.errors import ConfigError
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import Backbone, load_backbone
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.mixing_spec import MixingSpec, Weighting
from atlas_dist.train.answers import answer_encoder, asked_of, judge_of, text_of
from atlas_dist.train.module import StageModule
from tests.kits.data import memory_store
from tests.kits.towers import batch

HEAD = HeadSpec(TaskKind.GENERATE, 0)
SAY = TaskSpec("say", TaskKind.GENERATE, 0, 12, "say", "train", "val", "", "", max_new_tokens=6)


@pytest.fixture(scope="module")
def decoder() -> Backbone:
    return load_backbone("random-smolvlm")


def tokens(decoder: Backbone, *answers: str | None) -> torch.Tensor:
    encode = answer_encoder(decoder, SAY)
    assert encode is not None
    return torch.from_numpy(encode(answers))


def test_an_answer_is_its_text_again_without_its_end(decoder: Backbone) -> None:
    rows = tokens(decoder, "a red square", "Red ", None)
    assert decoder.chat is not None and (rows == decoder.chat.end).sum(1).tolist() == [1, 1, 0]
    assert [text_of(decoder.tokenizer, row) for row in rows] == ["a red square", "red", ""]
    assert (rows[2] == NO_TOKEN).all()


TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""SmolVLM's, as its checkpoints have it."""


def test_a_conversation_is_asked_as_the_chat_template_puts_it(decoder: Backbone) -> None:
    turns, question = (("what is it", "a red dog"), ("is it big", "no")), "what colour"
    said = [("user", turns[0][0]), ("assistant", turns[0][1]), ("user", turns[1][0]), ("assistant", turns[1][1])]
    messages = [{"role": who, "content": [{"type": "text", "text": text}]} for who, text in [*said, ("user", question)]]
    messages[0]["content"].insert(0, {"type": "image"})  # type: ignore[attr-defined]
    templated = decoder.tokenizer.apply_chat_template(
        messages, chat_template=TEMPLATE, add_generation_prompt=True, tokenize=False
    )
    asked, chat = asked_of(decoder, 100), decoder.chat
    assert asked is not None and chat is not None
    text = decoder.tokenizer(asked(((question,),), turns)[0][0], add_special_tokens=False)[
        "input_ids"
    ]  # the tiny one adds [CLS] and [SEP]
    around = "<fake_token_around_image><global-img>", "<fake_token_around_image>"
    wanted = decoder.tokenizer(str(templated).replace("<image>", "".join(around)), add_special_tokens=False)["input_ids"]
    assert [*chat.before, *chat.after_picture, *text, *chat.after_text] == wanted
    assert text.count(chat.end) == 4, "a turn's end is one token"
    assert asked_of(load_backbone("random-clip"), 100) is None


def test_a_rank_reads_conversations_as_they_are_asked(decoder: Backbone, tmp_path: Path) -> None:
    """From messages to the ids of a batch, and from there to a loss on the last answer."""
    messages = [{"role": who, "content": text} for who, text in (("user", "a?"), ("assistant", "b"), ("user", "c?"))]
    record = {"messages": [*messages, {"role": "assistant", "content": "d"}]}
    (tmp_path / "train.jsonl").write_text(json.dumps(record))
    store = memory_store()
    manifest = run_pack("instruct_jsonl", tmp_path, store, "d", "train", options={"pictures": 0}).manifest
    task = replace(SAY, max_text=24, dataset="d", train_digest=manifest.digest, val_digest=manifest.digest)
    with open_stream(
        store,
        manifest,
        task,
        decoder.tokenizer,
        decoder.image_size,
        seed=0,
        rank=0,
        world=1,
        global_batch=2,
        encode_answers=answer_encoder(decoder, task),
        asked=asked_of(decoder, task.max_text),
    ) as stream:
        (batch,) = list(stream.validation())
        assert batch.answers is not None
        read = {
            text_of(decoder.tokenizer, answer): decoder.tokenizer.decode(ids[mask.bool()])
            for answer, ids, mask in zip(batch.answers, batch.input_ids[:, 0], batch.attention_mask[:, 0], strict=True)
        }
    asked = asked_of(decoder, task.max_text)
    assert asked is not None
    shown = decoder.tokenizer.decode(decoder.tokenizer(asked((("c?",),), (("a?", "b"),))[0][0])["input_ids"])
    assert read == {"b": decoder.tokenizer.decode(decoder.tokenizer("a?")["input_ids"]), "d": shown}


def test_what_is_written_is_judged_when_nothing_trains_and_a_masked_slot_scores_nothing(
    decoder: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tokens(decoder, "a red square", "blue", "red")
    right = tokens(decoder, "A red  square", "a blue square", None)
    given = batch(decoder, HEAD) | {"answers": right}
    with AdaptedModel(decoder.model, HEAD, MixingSpec(weighting=Weighting.PLAIN), visible=0, grows=False, seed=0) as model:
        monkeypatch.setattr(
            model, "write", lambda _batch, most, _goes_on: type("Written", (tuple,), {})((said, -torch.rand(3, most)))
        )
        module = StageModule(model, HEAD, bf16=False, judge=judge_of(decoder, SAY)).eval()
        with torch.no_grad():
            loss, score, answers, _, f1 = module(given, right)
        assert score.tolist() == [1.0, 0.0, 0.0] and f1.tolist() == pytest.approx([1.0, 0.5, 0.0])
        assert loss[2] == 0 and answers.shape == (3, 12) and torch.equal(answers[:, :6].long(), said)
        assert len(module.train()(given, right)) == 4, "no decoding while something trains"


def test_writing_goes_on_for_as_long_as_it_is_told_and_changes_nothing(decoder: Backbone) -> None:
    """As a rank does whose answers have ended while another's have not."""
    given = batch(decoder, HEAD)
    with AdaptedModel(decoder.model, HEAD, MixingSpec(weighting=Weighting.PLAIN), visible=0, grows=False, seed=0) as model:
        asked: list[list[bool]] = []

        def to_the_end(going: torch.Tensor) -> bool:
            asked.append(going.tolist())
            return True

        with torch.no_grad():
            free = model.write(given, 6)
            decoder.model.chat_end, end = int(free.tokens[0, 0]), decoder.model.chat_end
            try:
                one = model.write({name: value[:1] for name, value in given.items()}, 6)
                longer = model.write({name: value[:1] for name, value in given.items()}, 6, to_the_end)
            finally:
                decoder.model.chat_end = end
    assert asked == [[False]] * 5, "after each token but the last"
    assert (one.tokens[0, 1:] == NO_TOKEN).all()
    assert torch.equal(one.tokens, longer.tokens) and torch.equal(one.log_probs, longer.log_probs)


def test_only_tasks_that_are_written_have_them_and_only_decoders_can(decoder: Backbone) -> None:
    shape = TaskSpec("shape", TaskKind.SINGLE, 3, 12, "shape", "train", "val", "", "")
    assert answer_encoder(decoder, shape) is None and judge_of(decoder, shape) is None
    with pytest.raises(ConfigError, match="say has answers to write; random-clip does not write"):
        answer_encoder(load_backbone("random-clip"), SAY)


def test_a_signature_is_made_without_the_answer(decoder: Backbone) -> None:
    given = batch(decoder, HEAD)
    seen = []
    with AdaptedModel(decoder.model, HEAD, MixingSpec(weighting=Weighting.PLAIN), visible=0, grows=False, seed=0) as model:
        model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        StageModule(model, HEAD, bf16=False).look(given)  # there is none, and none is missed
        features = model.features(given, HEAD)
    assert torch.equal(seen[0], features)
