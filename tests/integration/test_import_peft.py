"""A LoRA adapter that PEFT saved becomes experience: imported, looked at in stage one, carried, and exported again."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor

from atlas_dist.app.bank import import_peft
from atlas_dist.app.hub import pull_folder, push_bank
from atlas_dist.bank.adopt import import_bank
from atlas_dist.bank.contents import Bank, read_bank
from atlas_dist.bank.package import export_bank, read_package
from atlas_dist.bank.peft_folders import PeftContent, export_peft
from atlas_dist.bank.similar import similar
from atlas_dist.bank.verify import rescore, rescore_weights, rescoring_context, worth
from atlas_dist.bank.weights import load_weights
from atlas_dist.compose import compose_config
from atlas_dist.coordinator.expand import expand, specification_of_rows
from atlas_dist.coordinator.recall import recall
from atlas_dist.core.results import TrainResult
from atlas_dist.core.types import JobKind, TaskKind
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.model.backbone import load_backbone
from atlas_dist.model.heads import Head
from atlas_dist.runs.results import verified_fact
from atlas_dist.runs.status import load_run
from atlas_dist.runs.stores import open_run_store
from atlas_dist.serve.model import AtlasModel
from atlas_dist.store.objects import ObjectStore
from tests.kits.bank import write_ledger
from tests.kits.hub import fake_hub, use_hub
from tests.kits.peft_folders import LICENCE, save_peft
from tests.kits.stage import Bench, pack_toys, toy_words

pytestmark = pytest.mark.timeout(900)

LEARNER = (
    "method=atlas",
    "method.settings.adapter=lora",
    "method.settings.rank=2",
    "method.settings.expand=always",
    "train.budget.head_start=random",
    "sequence.downstream=[]",
)


def words(folder: Path, *more: str) -> tuple[str, ...]:
    return toy_words(folder, *LEARNER, *more)


@dataclass(frozen=True)
class Learnt:
    """A run that learnt two tasks with an imported adapter before them."""

    folder: Path
    peft: Path
    bench: Bench
    store: ObjectStore

    @property
    def bank(self) -> Bank:
        return read_bank(self.store, "toy")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    folder = tmp_path_factory.mktemp("imported")
    pack_toys(compose_config(list(words(folder, "sequence.upstream=[toy_shape,toy_kin]"))), samples=64)
    peft = save_peft(folder / "theirs", rank_pattern={"layer.0.attention.attention.query": 3}, use_rslora=True)
    taken = import_peft(peft, *words(folder), task="toy_shape", name="theirs", by="me")
    assert (taken.samples, taken.warnings, taken.was_there) == (64, (), False)
    config = compose_config(list(words(folder, "sequence.upstream=[toy_shape,toy_kin]", "sequence.experience=[theirs]")))
    bench = Bench(config)
    store = open_run_store(config)
    for job in bench.plan.jobs.values():
        if job.kind is JobKind.IMPORT:
            fact = verified_fact(store, job.key, lambda: None)
            assert fact is not None and fact.run == "theirs"
            bench.done[job.key] = fact.ref
        else:
            bench.learn(job)
    write_ledger(store, config, bench.plan, bench.done, specification_of_rows({"": config}, bench.plan))
    return Learnt(folder, peft, bench, store)


def imported_key(learnt: Learnt) -> str:
    (key,) = learnt.bank.imported
    return key


def test_the_first_task_looks_at_it_and_weighs_it(learnt: Learnt) -> None:
    key = imported_key(learnt)
    first = learnt.bench.plan.sequences[0].upstream[0]
    chosen = learnt.bench.plan.jobs[first.final]
    assert set(chosen.candidates) == {"own", "experience", "both"}
    experience = TrainResult.of(learnt.bench.done[chosen.candidates["experience"]])
    assert experience.sees == (key,)
    assert experience.similarity[key] == pytest.approx(1.0), "its signature is made from the same samples"
    second = learnt.bench.plan.jobs[learnt.bench.plan.sequences[0].upstream[1].final]
    assert set(TrainResult.of(learnt.bench.done[second.candidates["experience"]]).similarity) == {key, first.final}


def test_no_key_of_another_run_changes(learnt: Learnt) -> None:
    """Without the setting nothing of it is in a key, and what does not look back is the same with it."""
    without = expand(compose_config(list(words(learnt.folder, "sequence.upstream=[toy_shape,toy_kin]"))))
    with_it = learnt.bench.plan
    shared = {job.label.split("/", 1)[1] for key, job in with_it.jobs.items() if key in without.jobs}
    assert shared == {"1 toy_shape describe", "1 toy_shape own stage2", "2 toy_kin describe", "2 toy_kin own stage2"}


def test_the_plan_is_made_again_from_the_ledger_alone(learnt: Learnt) -> None:
    state, _ = load_run(learnt.store, "toy")
    tasks = {e.task.name: e.task for e in learnt.bank.learnt.values()}
    plan = recall(state, tasks, next(iter(learnt.bank.learnt.values())).base.digest, None)
    assert list(plan.jobs) == list(learnt.bench.plan.jobs)


def test_provenance_and_licence_are_shown(learnt: Learnt) -> None:
    told = learnt.bank.imported[imported_key(learnt)].provenance
    assert (told.licence, told.base_model, told.imported_by, told.source) == ("mit", "random-tiny", "me", "theirs")
    assert told.texts["LICENSE"] == LICENCE
    assert set(told.files) == {"adapter_config.json", "adapter_model.safetensors", "README.md", "LICENSE"}
    assert told.ranks["encoder.layer.0.attention.attention.query"] == 3
    assert told.imported_at > 1e9


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, 50, (3, 9), generator=generator)
    pixels = torch.randn(3, 3, 64, 64, generator=generator)
    return {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0, "pixel_values": pixels}


def outputs(folder: Path) -> Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(load_backbone("random-tiny").model, str(folder)).eval()(**batch()).pooler_output


def test_it_leaves_as_it_came(learnt: Learnt, tmp_path: Path) -> None:
    written = export_peft(load_weights(learnt.store, learnt.bank), tmp_path / "peft", PeftContent.ADAPTER)
    assert set(written) == {"theirs", "toy_shape", "toy_kin"}
    torch.testing.assert_close(outputs(written["theirs"]), outputs(learnt.peft), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        bare = load_backbone("random-tiny").model(**batch()).pooler_output
    assert (outputs(learnt.peft) - bare).abs().max() > 1e-2, "the adapter says something"
    assert (written["theirs"] / "LICENSE").read_text() == LICENCE
    assert 'license: ["mit"]' in (written["theirs"] / "README.md").read_text()
    assert json.loads((written["theirs"] / "provenance.json").read_text())["imported_by"] == "me"


def test_what_was_learnt_with_it_carries_its_licence(learnt: Learnt, tmp_path: Path) -> None:
    key, bank = imported_key(learnt), learnt.bank
    written = export_peft(load_weights(learnt.store, bank), tmp_path / "whole", PeftContent.TASK)
    readers = [e.name for e in bank.learnt.values() if key in e.sees]
    assert readers, "some task committed what it made of the imported adapter"
    for name in readers:
        assert (written[name] / "imported" / "theirs" / "LICENSE").read_text() == LICENCE
        assert "`theirs` (mit)" in (written[name] / "README.md").read_text()


def test_tasks_that_read_it_are_scored_again_to_the_last_bit(learnt: Learnt) -> None:
    for entry in learnt.bank.learnt.values():
        assert rescore(learnt.bench.config, learnt.bank, entry).bitwise


def test_a_bank_with_it_goes_through_a_folder(learnt: Learnt, tmp_path: Path) -> None:
    bank = learnt.bank
    export_bank(learnt.store, bank, load_weights(learnt.store, bank), tmp_path / "bank")
    weights = read_package(tmp_path / "bank")
    answer = AtlasModel.from_weights(weights).predict(
        "toy_kin", text="what?", choices=["a", "b", "c"], output_adapter_coefficients=True
    )
    assert answer.adapter_coefficients is not None
    assert list(answer.adapter_coefficients) == [bank.name_of(key) for key in bank.find("toy_kin").view]
    assert "licence: mit" in (tmp_path / "bank" / "README.md").read_text()

    config = compose_config(list(toy_words(tmp_path)))
    store = open_run_store(config)
    import_bank(store, tmp_path / "bank", weights, "again")
    again = read_bank(store, "again")
    told = again.imported[imported_key(learnt)]
    assert told.provenance == bank.imported[imported_key(learnt)].provenance
    assert {b.name: b.sha256 for b in told.ref.blobs} == {b.name: b.sha256 for b in bank.imported[imported_key(learnt)].ref.blobs}


def test_a_damaged_carried_adapter_is_refused(learnt: Learnt, tmp_path: Path) -> None:
    export_bank(learnt.store, learnt.bank, load_weights(learnt.store, learnt.bank), tmp_path / "bank")
    path = tmp_path / "bank" / "imported" / "theirs" / "provenance.json"
    path.write_text(path.read_text().replace('"licence":"mit"', '"licence":"cc0"'))
    with pytest.raises(DataError, match="damaged"):
        read_package(tmp_path / "bank")


def test_a_pruned_bank_may_be_without_it(learnt: Learnt, tmp_path: Path) -> None:
    key, bank = imported_key(learnt), learnt.bank
    weights = load_weights(learnt.store, bank)
    smaller = weights.without(frozenset({key}), dict.fromkeys(weights.tasks, 50.0))
    assert smaller.size < weights.size
    export_bank(learnt.store, bank, smaller, tmp_path / "bank", record={})
    found = read_package(tmp_path / "bank")
    assert found.dropped == {key} and not found.imported
    AtlasModel.from_weights(found).predict("toy_kin", text="what?", choices=["a", "b", "c"])


def test_the_same_import_again_is_the_same_fact(learnt: Learnt, tmp_path: Path) -> None:
    again = import_peft(learnt.peft, *words(learnt.folder), task="toy_shape", name="theirs", by="somebody else")
    assert again.key == imported_key(learnt) and again.was_there
    assert read_bank(learnt.store, "theirs").imported[again.key].provenance.imported_by == "me", "what is recorded stays"
    other = shutil.copytree(learnt.peft, tmp_path / "theirs")
    (other / "LICENSE").write_text("another licence\n")
    with pytest.raises(ConfigError, match="import of another adapter"):
        import_peft(other, *words(learnt.folder), task="toy_shape", name="theirs")
    elsewhere = import_peft(other, *words(learnt.folder), task="toy_shape", name="relicensed")
    assert elsewhere.key != again.key


def test_an_interrupted_import_goes_on(learnt: Learnt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any number of the ledger's entries."""
    import atlas_dist.store.log as log_module

    shutil.copytree(learnt.folder / "shards", tmp_path / "shards")
    append = log_module.RecordLog.append
    for dies_after in range(4):
        count = 0

        def dies(self: log_module.RecordLog, epoch: int, record: object, at: int = dies_after) -> object:
            nonlocal count
            if count == at:
                raise KeyboardInterrupt
            count += 1
            return append(self, epoch, record)  # type: ignore[arg-type]

        name = f"cut{dies_after}"
        monkeypatch.setattr(log_module.RecordLog, "append", dies)
        with pytest.raises(KeyboardInterrupt):
            import_peft(learnt.peft, *words(tmp_path), task="toy_shape", name=name)
        monkeypatch.setattr(log_module.RecordLog, "append", append)
        taken = import_peft(learnt.peft, *words(tmp_path), task="toy_shape", name=name)
        store = open_run_store(compose_config(list(words(tmp_path))))
        state, _ = load_run(store, name)
        assert state.finished and state.job(taken.key).committed is not None
        assert verified_fact(store, taken.key, lambda: None) is not None


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("sequence.experience=[nobody]",), "no imported adapter"),
        (("sequence.experience=[toy]",), "no imported adapter"),
        (("sequence.experience=[theirs]", "method=individual_adapters"), "would not look"),
        (("sequence.experience=[theirs]", "method.settings.adapter=bottleneck"), "bottlenecks"),
        (("sequence.experience=[theirs]", "backbone=random_clip"), "belongs to the backbone"),
        (("sequence.experience=[theirs,theirs]",), "named twice"),
    ],
)
def test_what_cannot_be_experience_is_refused(learnt: Learnt, more: tuple[str, ...], says: str) -> None:
    method = () if any(word.startswith("method=") for word in more) else LEARNER
    with pytest.raises(ConfigError, match=says):
        expand(compose_config(list(toy_words(learnt.folder, *method, "sequence.upstream=[toy_shape]", *more))))


def test_too_few_samples_and_unknown_tasks_are_refused(learnt: Learnt, tmp_path: Path) -> None:
    pack_toys(compose_config(list(words(tmp_path))), samples=12)
    with pytest.raises(DataError, match="12 samples"):
        import_peft(learnt.peft, *words(tmp_path), task="toy_shape", name="few")
    with pytest.raises(ConfigError, match="no task 'nope'"):
        import_peft(learnt.peft, *words(tmp_path), task="nope", name="few")


def test_without_the_setting_a_specification_says_nothing_of_it(learnt: Learnt) -> None:
    config = compose_config(list(words(learnt.folder, "sequence.upstream=[toy_shape]")))
    assert "experience" not in json.dumps(specification_of_rows({"": config}, expand(config)))


def test_an_adapter_goes_over_the_hub_and_says_so(learnt: Learnt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub() as hub:
        use_hub(hub, tmp_path, monkeypatch)
        pushed = push_bank("me/bank", *words(learnt.folder), peft=True)
        pull_folder("me/bank", tmp_path / "pulled")
    torch.testing.assert_close(outputs(tmp_path / "pulled" / "theirs"), outputs(learnt.peft), rtol=1e-5, atol=1e-5)
    taken = import_peft(tmp_path / "pulled" / "theirs", *words(learnt.folder), task="toy_shape", name="over_the_hub")
    assert (taken.provenance.source, taken.provenance.commit) == ("me/bank", pushed.commit)
    assert taken.provenance.licence == "mit" and taken.provenance.texts["LICENSE"] == LICENCE


def test_a_bank_answers_as_what_it_exports_for_peft(learnt: Learnt, tmp_path: Path) -> None:
    """The imported adapter acts on query and value, the tasks' own on other layers: each task reads them where they act."""
    weights = load_weights(learnt.store, learnt.bank)
    written = export_peft(weights, tmp_path / "whole", PeftContent.TASK)
    model, backbone = AtlasModel.from_weights(weights), load_backbone("random-tiny")
    picture = Image.new("RGB", (backbone.image_size,) * 2, (200, 30, 90))
    colour = torch.tensor([200.0, 30.0, 90.0]).view(1, 3, 1, 1) / 127.5 - 1
    pixels = colour.expand(-1, -1, backbone.image_size, backbone.image_size)
    ids = torch.tensor([backbone.tokenizer("This is an image.")["input_ids"]])
    inputs = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0, "pixel_values": pixels}
    for key, task in weights.tasks.items():
        if task.learnt.task.kind is not TaskKind.SINGLE:
            continue
        peft = PeftModel.from_pretrained(load_backbone("random-tiny").model, str(written[task.learnt.name])).eval()
        head = Head(backbone.width, task.learnt.task.classes, torch.Generator())
        head.load_state_dict({n.removeprefix("head/"): t for n, t in task.own.items() if n.startswith("head/")})
        with torch.no_grad():
            wanted = head(peft(**inputs).pooler_output).softmax(-1)[0]
        got = torch.tensor(model.predict(weights.name_of(key), image=picture).scores, dtype=torch.float32)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_tasks_are_scored_without_it(learnt: Learnt) -> None:
    """As pruning does: with all that they read, without the imported adapter, without any."""
    key, bank = imported_key(learnt), learnt.bank
    weights = load_weights(learnt.store, bank)
    context = rescoring_context(learnt.bench.config, weights, weights.first)
    for task in weights.tasks:
        view = weights.view(task)
        assert worth(context, weights, task).reproduced
        for chosen in (tuple(seen for seen in view if seen != key), ()):
            assert 0.0 <= rescore_weights(context, weights, task, chosen) <= 100.0


def test_similar_names_it(learnt: Learnt) -> None:
    config = compose_config(list(words(learnt.folder, "sequence.upstream=[toy_shape,toy_kin]")))
    spec = learnt.bank.find("toy_kin").task
    found = similar(config, spec, load_weights(learnt.store, learnt.bank))
    assert {adapter.task for adapter in found.adapters} == {"theirs", "toy_shape", "toy_kin"}
