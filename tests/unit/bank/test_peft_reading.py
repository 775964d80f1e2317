"""What is read of a PEFT folder computes what PEFT computes; everything that is not plain LoRA is refused, and says why."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from atlas_dist.bank.peft_reading import fitted, is_peft, read_peft
from atlas_dist.core.types import TaskKind
from atlas_dist.errors import DataError
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import load_backbone
from atlas_dist.model.heads import HeadSpec
from atlas_dist.model.lora import ranks_in
from atlas_dist.model.mixing_spec import LoraSpec, MixingSpec, Weighting
from tests.kits.peft_folders import LICENCE, edit, edit_tensors, save_peft

HEAD = HeadSpec(TaskKind.SINGLE, 2)
QUERY = "encoder.layer.{}.attention.attention.query"


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, 50, (3, 9), generator=generator)
    pixels = torch.randn(3, 3, 64, 64, generator=generator)
    return {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0, "pixel_values": pixels}


def ours(adapter: dict[str, Tensor]) -> Tensor:
    """Pooled outputs of our model with one adapter at α = 1."""
    spec = MixingSpec(rank=2, weighting=Weighting.PLAIN, lora=LoraSpec())
    model = AdaptedModel(
        load_backbone("random-tiny").model, HEAD, spec, visible=1, grows=False, seed=0, ranks=[ranks_in(adapter)]
    )
    with model, torch.no_grad():
        model.load_adapters([adapter])
        return model.eval().features({name: value[:, None] for name, value in batch().items()}, HEAD)


def theirs(folder: Path) -> Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(load_backbone("random-tiny").model, str(folder)).eval()(**batch()).pooler_output


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"target_modules": "all-linear", "r": 2},
        {"target_modules": r"encoder\.layer\.[01]\.attention\.attention\.(query|key)"},
        {"rank_pattern": {"query": 2, r"layer\.1\.attention\.attention\.value": 7}, "alpha_pattern": {"value": 3}},
        {"rank_pattern": {"query": 3}, "alpha_pattern": {r"layer\.0\.attention\.attention\.query": 5}, "use_rslora": True},
        {"target_modules": ["dense"], "exclude_modules": r".*pooler.*"},
        {"layers_to_transform": [1]},
    ],
    ids=str,
)
def test_it_computes_what_peft_computes(config: dict[str, Any], tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "theirs", **config)
    adapter = fitted(read_peft(folder), load_backbone("random-tiny").model)
    torch.testing.assert_close(ours(adapter), theirs(folder), rtol=1e-5, atol=1e-5)


def test_an_adapter_of_a_model_with_a_head_finds_the_backbone_in_it(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "wrapped", wrap="vilt", rank_pattern={r"vilt\.encoder\.layer\.0.*query": 2})
    assert all(".vilt." in name for name in load_file(folder / "adapter_model.safetensors"))
    backbone = load_backbone("random-tiny").model
    adapter = fitted(read_peft(folder), backbone)
    assert {QUERY.format(0): 2, QUERY.format(1): 4}.items() <= ranks_in(adapter).items()
    plain = fitted(read_peft(save_peft(tmp_path / "plain", rank_pattern={r"encoder\.layer\.0.*query": 2})), backbone)
    assert all(torch.equal(adapter[name], value) for name, value in plain.items())


class Small(nn.Module):
    """A model of two layers that PEFT can hang adapters on."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"query": nn.Linear(6, 5), "value": nn.Linear(6, 5)})


@given(
    rank=st.integers(1, 6),
    alpha=st.integers(1, 32),
    rslora=st.booleans(),
    own_rank=st.none() | st.integers(1, 6),
    own_alpha=st.none() | st.integers(1, 32),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scales_are_those_of_peft(
    tmp_path: Path, rank: int, alpha: int, rslora: bool, own_rank: int | None, own_alpha: int | None
) -> None:
    patterns = {
        "rank_pattern": {"query": own_rank} if own_rank else {},
        "alpha_pattern": {"query": own_alpha} if own_alpha else {},
    }
    config = LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rslora, target_modules=["query", "value"], **patterns)
    peft = get_peft_model(Small(), config)  # type: ignore[arg-type]
    peft.save_pretrained(str(tmp_path / "peft"))
    adapter = fitted(read_peft(tmp_path / "peft"), Small())
    for name in ("query", "value"):
        layer = peft.base_model.model.block[name]
        assert float(adapter[f"adapter/block.{name}/scale"]) == pytest.approx(layer.scaling["default"], rel=1e-6)
        assert len(adapter[f"adapter/block.{name}/lora_A.weight"]) == layer.r["default"]


def test_texts_and_licence_come_along(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "theirs")
    (folder / "NOTICE.txt").write_text("noticed\n")
    (folder / "train.py").write_text("print('not read')\n")
    read = read_peft(folder)
    assert read.licence == "mit" and read.base_model == "random-tiny"
    assert set(read.texts) == {"README.md", "LICENSE", "NOTICE.txt"} and read.texts["LICENSE"] == LICENCE
    assert set(read.files) == {"adapter_config.json", "adapter_model.safetensors", *read.texts}


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("license:\n- mit\n- cc0-1.0", "mit, cc0-1.0"),
        ("license: other\nlicense_name: gemma\nlicense_link: https://x.example/terms", "other (gemma, https://x.example/terms)"),
        ("license: [unclosed", ""),
        ("tags: [lora]", ""),
        ("- a list", ""),
    ],
)
def test_how_a_card_names_its_licence(front: str, licence: str, tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "theirs")
    (folder / "README.md").write_text(f"---\n{front}\n---\n# card\n")
    assert read_peft(folder).licence == licence


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save is .*whole layers"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "changes the weights of the backbone"),
        ({"fan_in_fan_out": True}, "transposed"),
        ({"use_future_trick": True}, "does not know"),
        ({"r": "four"}, "r: "),
        ({"r": 0}, "r: "),
    ],
    ids=str,
)
def test_what_is_not_plain_lora_is_refused(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "theirs")
    edit(folder, **fields)
    with pytest.raises(DataError, match=says) as error:
        read_peft(folder)
    assert error.value.fix and error.value.exit_code == 3 and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"target_modules": ["query", "value", "q_proj"]}, "'q_proj', which fits no linear layer.*"),
        ({"target_modules": "[", "peft_type": "LORA"}, "no regular expression"),
        ({"target_modules": ["query", "value", "key"]}, "has nothing for encoder.layer.0.attention.attention.key and 1 layers"),
        ({"r": 8}, r"lora_A of .* is \[4, "),
        ({"rank_pattern": {"value": 2}}, r"with rank 2"),
        ({"rank_pattern": {"[": 2}}, "no regular expression"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "theirs")
    edit(folder, **fields)
    with pytest.raises(DataError, match=says):
        fitted(read_peft(folder), load_backbone("random-tiny").model)


def test_an_adapter_of_another_architecture_is_refused(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "theirs")
    with pytest.raises(DataError, match=r"no linear layer of this backbone.*linear layers end in"):
        fitted(read_peft(folder), load_backbone("random-clip").model)


def renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {n: v * math.nan for n, v in t.items()}, "not finite"),
        (lambda t: {n: v.double() * 1e300 for n, v in t.items()}, "beyond float32"),
        (lambda t: {n: v.to(torch.int8) for n, v in t.items()}, "floating point"),
        (lambda t: {n: v[None] for n, v in t.items()}, "a matrix"),
        (lambda t: {n: v for n, v in t.items() if "lora_A" in n}, "only one of lora_A and lora_B"),
        (lambda t: {}, "no tensor at all"),
        (lambda t: renamed(t, "lora_A", "lora_embedding_A"), "lora_embedding_A"),
        (lambda t: t | {"base_model.model.head.weight": torch.zeros(2, 2)}, "head.weight, which is no lora_A"),
    ],
)
def test_weights_that_are_none_are_refused(change: Any, says: str, tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "theirs")
    edit_tensors(folder, change)
    with pytest.raises(DataError, match=says):
        read_peft(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_weights_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "theirs")
    edit_tensors(folder, lambda t: {name: value.to(dtype) for name, value in t.items()})
    for pair in read_peft(folder).layers.values():
        assert all(matrix.dtype is torch.float32 for matrix in pair)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "LICENSE"])
def test_a_pointer_of_git_lfs_is_no_file(file: str, tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "theirs")
    (folder / file).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234\n")
    with pytest.raises(DataError, match=r"Git LFS pointer.*git lfs pull"):
        read_peft(folder)


@given(share=st.floats(0, 0.999))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_that_was_cut_is_refused(share: float, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    if not folder.exists():
        save_peft(folder)
        (tmp_path / "whole").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    whole = (tmp_path / "whole").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError):
        read_peft(folder)


def test_a_pickle_is_not_read_and_the_command_that_converts_it_works(tmp_path: Path) -> None:
    import subprocess
    import sys

    folder = save_peft(tmp_path / "theirs")
    tensors = load_file(folder / "adapter_model.safetensors")
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert is_peft(folder)
    with pytest.raises(DataError, match="may run code") as error:
        read_peft(folder)
    command = error.value.fix.split(": ", 1)[1].replace("python ", f"{sys.executable} ", 1)
    subprocess.run(["bash", "-ec", command], cwd=folder, check=True)
    read = read_peft(folder)
    assert len(read.layers) == len(tensors) / 2


def test_missing_files_and_other_folders(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "theirs")
    assert is_peft(folder) and not is_peft(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match=r"There is no .*adapter_model.safetensors"):
        read_peft(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        read_peft(folder)
    (folder / "adapter_config.json").write_text(json.dumps([1]))
    with pytest.raises(DataError, match="not a JSON object"):
        read_peft(folder)


def test_a_link_out_of_the_folder_is_not_followed_and_the_cache_of_the_hub_is(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "theirs")
    (tmp_path / "secret").write_text("not theirs\n")
    (folder / "NOTICE").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="outside the folder"):
        read_peft(folder)
    (folder / "NOTICE").unlink()
    snapshot, blobs = tmp_path / "models--me--x" / "snapshots" / "0a1b", tmp_path / "models--me--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blobs / str(number))
    assert read_peft(snapshot).files == read_peft(folder).files


@pytest.mark.parametrize("text", ['{"peft_type": "LORA", "x": NaN}', '{"peft_type": "LORA", "x": 1e999}', '{"x": "\\ud800"}'])
def test_what_json_cannot_say_is_refused(text: str, tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "theirs")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(DataError, match="is not JSON"):
        read_peft(folder)


@pytest.mark.parametrize(
    "fields", [{"rank_pattern": {"value": 0}}, {"lora_alpha": 1e300}, {"alpha_pattern": {"value": 1e300}}], ids=str
)
def test_numbers_without_sense_are_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "theirs")
    edit(folder, **fields)
    with pytest.raises(DataError):
        fitted(read_peft(folder), load_backbone("random-tiny").model)
