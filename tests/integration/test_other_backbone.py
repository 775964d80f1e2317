"""Backbones of other architectures, through the real path of a worker: the two towers of CLIP and SigLIP and SmolVLM's decoder
learn, forget nothing, travel, answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atlas_dist import AtlasModel, Request
from atlas_dist.bank.adopt import import_bank
from atlas_dist.bank.contents import read_bank
from atlas_dist.bank.package import export_bank, read_package
from atlas_dist.bank.verify import rescore, rescoring_context
from atlas_dist.bank.weights import load_weights
from atlas_dist.core.result_files import BACKBONE_FILE
from atlas_dist.errors import ConfigError
from atlas_dist.runs.stores import open_shards
from atlas_dist.store.local import LocalStore
from atlas_dist.train.inputs import read_if_there
from tests.kits.bank import Toys, toys
from tests.kits.stage import Bench, pack_toys, toy_config

TWO = ("sequence.upstream=[toy_kin,toy_pair]", "sequence.downstream=[]")
PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (50, 70, 3), np.uint8))


@pytest.fixture(scope="module", params=["clip", "siglip", "smolvlm"])
def learnt(request: pytest.FixtureRequest) -> Toys:
    return toys(f"backbone=random_{request.param}", *TWO)


def test_an_old_task_stays_equal_to_the_last_bit(learnt: Toys) -> None:
    first, later = (learnt.bench.done[learnt.bench.job(f"{after} eval toy_kin").key].metrics["views"] for after in (1, 2))
    assert first["task"]["predictions_sha256"] == later["task"]["predictions_sha256"]
    assert later["latest"]["predictions_sha256"] != later["task"]["predictions_sha256"]


def test_the_bank_says_its_architecture_travels_and_answers(learnt: Toys, tmp_path: Path) -> None:
    weights = load_weights(learnt.store, learnt.bank, shards=open_shards(learnt.config))
    export_bank(learnt.store, learnt.bank, weights, tmp_path / "bank")
    read = read_package(tmp_path / "bank")
    kind = learnt.config.backbone.name.removeprefix("random-")
    assert (read.base.name, read.base.architecture) == (f"random-{kind}", kind)
    assert f"({kind})" in (tmp_path / "bank" / "README.md").read_text()

    model = AtlasModel.from_pretrained(tmp_path / "bank", device="cpu")
    kin = Request("toy_kin", None, "red is to rose", ("as blue", "as one is to two", "as left"))
    pair = Request("toy_pair", [PICTURE, PICTURE.rotate(90)], "the left one is bigger")
    # Shorter texts are padded to the longer ones: left out at the text tower's sites, unknown to the picture tower's.
    for answer, request in zip(model.predict_batch([kin, pair], output_adapter_coefficients=True), (kin, pair), strict=True):
        alone = model.predict_batch([request], output_adapter_coefficients=True)[0]
        assert answer.scores == pytest.approx(alone.scores, abs=1e-5)
        assert answer.adapter_coefficients is not None and alone.adapter_coefficients is not None
        for adapter, alpha in alone.adapter_coefficients.items():
            assert {site[:2] for site in alpha} == {"T0", "T1", "V0", "V1", "V2"}
            assert answer.adapter_coefficients[adapter] == pytest.approx(alpha, abs=1e-5)

    store = LocalStore(tmp_path / "store")
    import_bank(store, tmp_path / "bank", read, "taken")
    bank = read_bank(store, "taken")
    context = rescoring_context(learnt.config, learnt.bank, learnt.bank.find("toy_kin"))
    assert [e.base.architecture for e in bank.learnt.values()] == [kind, kind]
    for e in learnt.bank.learnt.values():
        assert rescore(learnt.config, learnt.bank, e, context).bitwise


@pytest.mark.parametrize("kind", ["clip", "siglip", "smolvlm"])
@pytest.mark.parametrize("method", ["sequential_finetune", "freeze_bottom_k method.settings.layers=1"])
def test_methods_that_train_the_backbone_train_both_towers(method: str, kind: str, tmp_path: Path) -> None:
    short = ("train.budget.max_steps=2", "train.budget.validations=1")
    config = toy_config(tmp_path, f"backbone=random_{kind}", *TWO, *f"method={method}".split(), *short)
    pack_toys(config, samples=64)
    bench = Bench(config)
    for job in bench.plan.jobs.values():
        bench.learn(job)
    left = read_if_there(bench.context.store, bench.done[bench.job("2 toy_pair stage2").key], BACKBONE_FILE)
    before = bench.context.own_backbone({}).state_dict()
    moved = {name for name, value in left.items() if not torch.equal(value, before[name])}
    towers = {"text_model", "vision_model"} | ({"text_projection", "visual_projection"} if kind == "clip" else set())
    towers |= {"connector"} if (kind, method) == ("smolvlm", "sequential_finetune") else set()
    assert {name.removeprefix("model.").split(".")[0] for name in moved} == towers
    assert not {"logit_scale", "logit_bias", "lm_head.weight"} & left.keys()
    assert any(".layers.0." in name for name in left) is (method == "sequential_finetune")


def test_a_type_for_second_pictures_is_refused_where_the_backbone_has_none(learnt: Toys) -> None:
    with pytest.raises(ConfigError, match=r"second_image_type is 2, but (clip|siglip|smolvlm) backbones know 1"):
        named = f"backbone={learnt.config.backbone.name.replace('-', '_')}"
        Bench(toy_config(learnt.folder, named, *TWO, "method.settings.second_image_type=2"))
