"""Checkpoints as people have them: sharded, halved, with heads. Each computes what the whole float32 one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForMaskedLM,
    ViltForQuestionAnswering,
)

from atlas_dist.errors import DataError
from atlas_dist.model.backbone import Backbone, load_backbone
from atlas_dist.model.backbone_refs import backbone_ref
from tests.kits.checkpoints import as_bin, edited, loaded, saved, stock


@pytest.fixture(scope="module")
def small() -> Backbone:
    return load_backbone("random-tiny")


def test_a_sharded_checkpoint_is_the_whole_one(small: Backbone, tmp_path: Path) -> None:
    saved(tmp_path, stock(small), max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert loaded(tmp_path).digest == small.digest


def test_a_bin_of_tensors_is_the_whole_one(small: Backbone, tmp_path: Path) -> None:
    saved(tmp_path, stock(small))
    as_bin(tmp_path)
    assert loaded(tmp_path).digest == small.digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_halved_checkpoint_is_computed_in_float32(dtype: torch.dtype, small: Backbone, tmp_path: Path) -> None:
    saved(tmp_path, stock(small).to(dtype))
    model = loaded(tmp_path).model
    name = "pooler.dense.weight"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.get_parameter(name), small.model.get_parameter(name).to(dtype).float())


HEADS: dict[str, Callable[[ViltConfig], Any]] = {
    "masked words": ViltForMaskedLM,
    "answers": ViltForQuestionAnswering,
    "pairs": ViltForImagesAndTextClassification,
    "retrieval": ViltForImageAndTextRetrieval,
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_of_a_task_is_left_on_the_shelf(kind: str, small: Backbone, tmp_path: Path) -> None:
    """The paper's backbone is published with one."""
    model = HEADS[kind](ViltConfig(**small.model.config.to_dict() | {"num_images": 2}))
    model.vilt.load_state_dict(small.model.state_dict(), strict=False)  # models of pairs have a third kind of token of their own
    weights = loaded(saved(tmp_path, model)).model.state_dict()
    assert weights.keys() == small.model.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in small.model.state_dict().items())


def test_what_is_no_head_is_still_refused(small: Backbone, tmp_path: Path) -> None:
    saved(tmp_path, stock(small))
    edited(tmp_path, lambda weights: {**weights, "encoder.extra.weight": torch.zeros(2)})
    with pytest.raises(DataError, match=r"unexpected: encoder\.extra\.weight"):
        loaded(tmp_path)


def test_files_that_are_not_read_may_be_anything(small: Backbone, tmp_path: Path) -> None:
    """Whoever pulls only what is needed leaves pointers for the rest."""
    saved(tmp_path, stock(small))
    for name in ("pytorch_model.bin", "vocab.txt", "tf_model.h5", "training_args.bin"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 470000000\n")
    assert loaded(tmp_path).digest == small.digest


def test_a_home_folder_may_be_written_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert backbone_ref("mine", "~/models/vilt").source == f"{tmp_path}/models/vilt"
