"""The bank from outside: what a ledger tells, what verification notices, what survives the trip through a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from atlas_dist.bank.adopt import import_bank
from atlas_dist.bank.contents import read_bank, runs_of
from atlas_dist.bank.package import WEIGHTS_FILE, export_bank, read_package
from atlas_dist.bank.verify import rescore, rescoring_context, verify_results
from atlas_dist.bank.weights import load_weights
from atlas_dist.core.keys import sha256_hex
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.runs.results import verified_fact
from atlas_dist.runs.stores import open_shards
from atlas_dist.store import open_store
from atlas_dist.store.local import LocalStore
from tests.kits.bank import Toys, toys


@pytest.fixture(scope="module")
def learnt() -> Toys:
    return toys()


@pytest.fixture(scope="module")
def exported(learnt: Toys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "bank"
    weights = load_weights(learnt.store, learnt.bank, shards=open_shards(learnt.config))
    export_bank(learnt.store, learnt.bank, weights, folder)
    return folder


def test_the_ledger_tells_tasks_lineage_and_scores(learnt: Toys) -> None:
    bank = learnt.bank
    assert [e.name for e in bank.learnt.values()] == ["toy_shape", "toy_kin", "toy_ask", "toy_pair"]
    ask = bank.find("toy_ask")
    assert [bank.learnt[key].name for key in ask.view] == ["toy_shape", "toy_kin", "toy_ask"]
    assert bank.find(ask.key[:10]) is ask
    evaluation = bank.evaluation_of(ask.key)
    assert evaluation is not None
    assert evaluation.score == learnt.bench.done[learnt.bench.job("3 eval toy_ask").key].metrics["views"]["task"]["score"]
    assert runs_of(learnt.store) == ["toy"]


def test_what_is_not_there_is_named_with_what_is(learnt: Toys) -> None:
    with pytest.raises(ConfigError, match="toy_shape, toy_kin, toy_ask, toy_pair"):
        learnt.bank.find("film")
    with pytest.raises(ConfigError, match=r"no run other.*one of: toy"):
        read_bank(learnt.store, "other")


def test_verification_reads_every_file_and_names_the_damaged_one(learnt: Toys, tmp_path: Path) -> None:
    shutil.copytree(learnt.folder / "store", tmp_path / "store")
    store = LocalStore(tmp_path / "store")
    whole = list(verify_results(store, "toy"))
    assert len(whole) == len(learnt.bench.done)
    assert not [c for c in whole if c.fault]
    victim = learnt.bank.find("toy_kin").ref
    for name, damage in (("adapter.safetensors", b"\1"), ("details.json", b" ")):
        path = tmp_path / "store" / victim.prefix / name
        before = path.read_bytes()
        path.write_bytes(damage + before[1:])
        faults = [c for c in verify_results(store, "toy") if c.fault]
        assert [c.ref.job for c in faults] == [victim.job]
        assert name in faults[0].fault
        path.write_bytes(before)


def test_a_reloaded_task_reproduces_its_recorded_evaluation_bit_by_bit(learnt: Toys) -> None:
    bank = learnt.bank
    context = rescoring_context(learnt.config, bank, bank.find("toy_shape"))
    for e in bank.learnt.values():
        got = rescore(learnt.config, bank, e, context)
        assert got.evaluation is not None
        assert got.score == got.evaluation.score
        assert got.bitwise


def test_the_folder_holds_what_the_hub_expects(exported: Path, learnt: Toys) -> None:
    config = json.loads((exported / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "random-tiny"
    assert config["base_model_digest"] == learnt.bank.find("toy_kin").base.digest
    assert next(t["labels"] for t in config["tasks"] if t["name"] == "toy_shape")
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: atlas-dist\nbase_model: ")
    assert all(f"| {e.name} |" in card and e.key in card for e in learnt.bank.learnt.values())
    assert str(learnt.folder) not in card + json.dumps(config), "no place of this machine travels"


def test_a_bank_survives_the_folder_tensor_by_tensor(exported: Path, learnt: Toys) -> None:
    there = load_weights(learnt.store, learnt.bank)
    back = read_package(exported)
    assert list(back.tasks) == list(there.tasks)
    for key, task in there.tasks.items():
        for before, after in ((task.adapter, back.tasks[key].adapter), (task.own, back.tasks[key].own)):
            assert before.keys() == after.keys()
            assert all(torch.equal(before[n], after[n]) for n in before)
        assert back.tasks[key].learnt.task == task.learnt.task


def test_exporting_one_task_takes_along_what_it_sees_and_no_more(learnt: Toys, tmp_path: Path) -> None:
    weights = load_weights(learnt.store, learnt.bank, ["toy_kin"])
    assert [t.learnt.name for t in weights.tasks.values()] == ["toy_shape", "toy_kin"]
    export_bank(learnt.store, learnt.bank, weights, tmp_path / "one")
    assert len(read_package(tmp_path / "one").tasks) == 2


def test_an_import_is_a_run_whose_facts_others_adopt(exported: Path, learnt: Toys, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "elsewhere"))
    weights = read_package(exported)
    import_bank(store, exported, weights, "taken")
    assert not [c for c in verify_results(store, "taken") if c.fault]
    bank = read_bank(store, "taken")
    for e in learnt.bank.learnt.values():
        assert bank.learnt[e.key].ref.blobs == e.ref.blobs, "to the last byte"
        pointer = verified_fact(store, e.key, lambda: None)
        assert pointer is not None
        assert pointer.run == "taken"
    with pytest.raises(ConfigError, match="already"):
        import_bank(store, exported, weights, "taken")


def _edit_config(folder: Path, change: dict[str, object]) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def _swap_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other tensors with a hash that fits: what is left to catch is their names, shapes and values."""
    data = save(tensors)
    (folder / WEIGHTS_FILE).write_bytes(data)
    files = json.loads((folder / "adapter_config.json").read_text())["files"]
    files[WEIGHTS_FILE] = {"size": len(data), "sha256": sha256_hex(data)}
    _edit_config(folder, {"files": files})


@pytest.mark.parametrize("attack", ["cut", "bit", "foreign", "nan", "format", "no config", "climb", "extra key", "fact"])
def test_a_folder_that_is_not_whole_or_not_ours_is_refused(exported: Path, tmp_path: Path, attack: str) -> None:
    folder = tmp_path / "bank"
    shutil.copytree(exported, folder)
    weights = folder / WEIGHTS_FILE
    data = weights.read_bytes()
    tensors = load(data)
    if attack == "cut":
        weights.write_bytes(data[:-1])
    elif attack == "bit":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif attack == "foreign":
        _swap_weights(folder, tensors | {"toy_pickle/adapter/x": torch.zeros(1)})
    elif attack == "nan":
        name = next(iter(tensors))
        _swap_weights(folder, tensors | {name: torch.full_like(tensors[name], torch.nan)})
    elif attack == "format":
        _edit_config(folder, {"format": "pickle 4"})
    elif attack == "no config":
        (folder / "adapter_config.json").unlink()
    elif attack == "climb":
        config = json.loads((folder / "adapter_config.json").read_text())
        config["tasks"][0]["name"] = "../../etc"
        _edit_config(folder, config)
    elif attack == "extra key":
        _edit_config(folder, {"auto_map": "code.py"})
    else:
        (folder / "facts" / "toy_kin.json").write_text("{}")
    with pytest.raises(DataError):
        read_package(folder)
