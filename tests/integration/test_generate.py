"""Tasks whose answers are written, through the real path of a worker: a decoder learns one among tasks of classes, forgets
nothing, travels, answers in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import SmolVLMForConditionalGeneration

from atlas_dist import AtlasModel, Request
from atlas_dist.bank.package import export_bank, read_package
from atlas_dist.bank.peft_folders import PeftContent, export_peft
from atlas_dist.bank.verify import rescore, rescoring_context
from atlas_dist.bank.weights import load_weights
from atlas_dist.core.result_files import CONFIG_FILE, DETAILS_FILE, VALIDATION_FILE
from atlas_dist.core.results import EvalResult, SelectResult
from atlas_dist.core.types import View
from atlas_dist.data.tasks.toy import ToySource
from atlas_dist.errors import DataError
from atlas_dist.model.backbone import load_backbone
from atlas_dist.model.pixels import Normalise
from atlas_dist.runs.stores import open_shards
from atlas_dist.serve.inputs import pixels_of
from atlas_dist.train.inputs import read_if_there
from tests.kits.bank import Toys, toys
from tests.kits.stage import Bench, pack_toys, toy_config

DECODER = ("backbone=random_smolvlm", "sequence=toy_decoder")


@pytest.fixture(scope="module", params=[("bottleneck", 1), ("lora", 1), ("bottleneck", 2), ("lora", 2)], ids=str)
def learnt(request: pytest.FixtureRequest) -> Toys:
    """Pictures are seen whole, or in 2 x 2 tiles."""
    adapter, tiles = request.param
    form = ("method=atlas", "method.settings.rank=4", f"method.settings.adapter={adapter}")
    return toys(*DECODER, *form, *((f"backbone.tiles={tiles}",) if tiles > 1 else ()))


def view_of(learnt: Toys, label: str, view: View) -> dict[str, object]:
    return vars(EvalResult.of(learnt.bench.done[learnt.bench.job(label).key]).views[view])


def test_it_is_scored_by_what_was_written_and_stays_equal_to_the_last_bit(learnt: Toys) -> None:
    first, later = view_of(learnt, "2 eval toy_say", View.TASK), view_of(learnt, "3 eval toy_say", View.TASK)
    assert first["predictions_sha256"] == later["predictions_sha256"] != view_of(learnt, "3 eval toy_say", View.LATEST)
    assert isinstance(first["token_f1"], float) and 0 <= first["token_f1"] <= 100
    assert view_of(learnt, "2 eval toy_shape", View.TASK)["token_f1"] is None, "a task of classes has none"
    like = learnt.bench.done[learnt.bench.job("2 eval toy_say").key].metrics["like"]
    seen = ", 2 x 2 tiles" if learnt.config.backbone.tiles else ""
    assert like["trunk"] == f"random-smolvlm{seen}", "what tells how long a sample takes"


def test_forms_are_chosen_by_score_and_loss_of_each_sample_and_none_has_a_head(learnt: Toys) -> None:
    chosen = SelectResult.of(learnt.bench.done[learnt.bench.job("2 toy_say select").key])
    assert set(chosen.scores) == {"own", "experience", "both"} and set(chosen.losses) == set(chosen.scores)
    for form in ("own stage2", "stage1", "stage2"):
        ref = learnt.bench.done[learnt.bench.job(f"2 toy_say {form}").key]
        samples = read_if_there(learnt.store, ref, VALIDATION_FILE)
        assert len(samples["sample"]) == 32 and bool(torch.isfinite(samples["loss"]).all())
        assert any(blob.name == DETAILS_FILE for blob in ref.blobs)
        assert not [name for name in read_if_there(learnt.store, ref, "task.safetensors") if name.startswith("head/")]


def test_the_bank_travels_and_answers_in_words(learnt: Toys, tmp_path: Path) -> None:
    weights = load_weights(learnt.store, learnt.bank, shards=open_shards(learnt.config))
    export_bank(learnt.store, learnt.bank, weights, tmp_path / "bank")
    read = read_package(tmp_path / "bank")
    assert read.base.architecture == "smolvlm" and read.base.tiles == (learnt.config.backbone.tiles or 1)
    told = json.loads((tmp_path / "bank" / CONFIG_FILE).read_text())
    assert told.get("tiles", 1) == read.base.tiles and "tiles" not in told["base_model"]
    card = (tmp_path / "bank" / "README.md").read_text()
    assert f"digest `{read.base.digest}`." in card and ("pictures in 2 x 2 tiles" in card) == (read.base.tiles == 2)
    model = AtlasModel.from_pretrained(tmp_path / "bank", device="cpu")
    picture = ToySource(64).read("red-circle-17.png")
    say = Request("toy_say", picture, "What colour is it?")
    shape = Request("toy_shape", picture)
    both = model.predict_batch([say, shape, say], output_adapter_coefficients=True)
    alone = model.predict_batch([say])[0]
    assert both[0].answer == both[2].answer == alone.answer and both[0].confidence == pytest.approx(alone.confidence, rel=1e-4)
    assert alone.scores == (alone.confidence,) and 0 < alone.confidence < 1 and alone.index == 0
    again = model.predict("toy_say", picture, "big?", earlier=(("red?", "yes"),))
    asked = "red?<end_of_utterance>\nAssistant: yes<end_of_utterance>\nUser: big?"
    assert again.confidence == model.predict("toy_say", picture, asked).confidence
    assert again.confidence != model.predict("toy_say", picture, "big?").confidence
    with pytest.raises(DataError, match="toy_shape holds no conversations"):
        model.predict("toy_shape", picture, earlier=(("What is it?", "a red circle"),))
    assert both[1].answer.split()[0] in ("red", "green", "blue", "yellow")
    for entry in learnt.bank.learnt.values():
        context = rescoring_context(learnt.config, learnt.bank, entry)
        assert rescore(learnt.config, learnt.bank, entry, context).bitwise


def test_transformers_and_peft_write_the_same_with_an_exported_adapter(tmp_path: Path) -> None:
    """What a task is, outside of this package: the stock model, LoRA as PEFT loads it, the chat template, greedy decoding."""
    learnt = toys(*DECODER, "method=individual_adapters", "sequence.upstream=[toy_say]", "method.settings.adapter=lora")
    weights = load_weights(learnt.store, learnt.bank, shards=open_shards(learnt.config))
    folder = export_peft(weights, tmp_path / "peft", PeftContent.ADAPTER)["toy_say"]
    assert not (folder / "head.safetensors").exists() and "there is no head" in (folder / "README.md").read_text()

    own, ours = load_backbone("random-smolvlm"), AtlasModel.from_weights(weights, device="cpu")
    stock = SmolVLMForConditionalGeneration(own.model.config)
    stock.load_state_dict(own.model.state_dict())
    theirs = PeftModel.from_pretrained(stock.eval(), str(folder)).eval()
    chat = own.chat
    assert chat is not None
    for name, question in (("red-circle-17.png", "What colour is it?"), ("blue-square-4.png", "What is it?")):
        picture = ToySource(64).read(name)
        pixels = torch.from_numpy(pixels_of(weights.first.task, [picture], own.image_size))
        text = own.tokenizer(question)["input_ids"]
        ids = torch.tensor([[*chat.before, *[own.model.config.image_token_id] * 4, *chat.after_picture, *text, *chat.after_text]])
        written = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=Normalise(own.pixel_mean, own.pixel_std, torch.device("cpu"))(pixels)[None],
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=chat.end,
            pad_token_id=0,
        )[0, ids.shape[1] :]
        said = own.tokenizer.decode(written, skip_special_tokens=True).strip()
        assert ours.predict("toy_say", picture, question).answer == said != ""


def test_a_decoder_with_random_weights_learns_to_say_what_it_sees(tmp_path: Path) -> None:
    """Always the same answer is right for 1 of 8 at best: half of the questions, 4 colours."""
    config = toy_config(
        tmp_path,
        *DECODER,
        "method=individual_adapters",
        "method.settings.rank=16",
        "sequence.upstream=[toy_say]",
        "train.budget.max_steps=150",
        "train.budget.lr=0.005",
        "train.budget.augment=none",
    )
    pack_toys(config, samples=512)
    bench = Bench(config)
    bench.learn(bench.job("toy_say stage2"))
    view = EvalResult.of(bench.learn(bench.job("eval toy_say"))).views[View.TASK]
    assert view.score > 15 and view.token_f1 is not None and view.token_f1 > view.score
