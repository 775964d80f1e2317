"""Requests that name no task: given to the one whose samples they look like, or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from atlas_dist import AtlasModel, Request
from atlas_dist.bank.weights import BankWeights, load_weights
from atlas_dist.compose import compose_config
from atlas_dist.core.types import JobKind
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.runs.stores import open_shards
from atlas_dist.train.signatures import DENSITY, FORM, POOLED, observe_training, signature_tensors
from tests.kits.bank import Toys, toys

PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (50, 70, 3), np.uint8))
REQUESTS = {
    "toy_shape": Request("toy_shape", PICTURE),
    "toy_kin": Request("toy_kin", None, "red is to rose", ("as blue is to sky", "as one is to two", "as left")),
    "toy_ask": Request("toy_ask", PICTURE, "what colour is it?"),
    "toy_pair": Request("toy_pair", [PICTURE, PICTURE.rotate(90)], "the left one is bigger"),
}


@pytest.fixture(scope="module")
def learnt() -> Toys:
    return toys("method=atlas")


@pytest.fixture(scope="module")
def weights(learnt: Toys) -> BankWeights:
    return load_weights(learnt.store, learnt.bank, shards=open_shards(learnt.config))


@pytest.fixture(scope="module")
def model(weights: BankWeights) -> AtlasModel:
    return AtlasModel.from_weights(weights, device="cpu")


def _changed(weights: BankWeights, **parts: torch.Tensor | None) -> BankWeights:
    """Signatures with other tensors of these names; None = without."""
    tasks = {}
    for key, task in weights.tasks.items():
        kept = {name: tensor for name, tensor in task.signature.items() if name.replace("/", "_") not in parts}
        new = {name: parts[name.replace("/", "_")] for name in task.signature if name.replace("/", "_") in parts}
        tasks[key] = replace(task, signature=kept | {name: tensor for name, tensor in new.items() if tensor is not None})
    return replace(weights, tasks=tasks)


def test_kinds_alone_tell_the_toy_tasks_apart(model: AtlasModel) -> None:
    choices = model.choose_tasks(REQUESTS.values())
    assert [[candidate.task for candidate in choice.candidates] for choice in choices] == [[name] for name in REQUESTS]
    assert all(choice.best is not None and choice.best.probability == 1 for choice in choices)


def test_named_and_unnamed_requests_share_a_batch_and_answer_as_named_ones(weights: BankWeights) -> None:
    """With limits that let everything in: this is about the answer, not about the refusal."""
    model = AtlasModel.from_weights(_changed(weights, density_limit=torch.tensor(1e9)), device="cpu")
    named = list(REQUESTS.values())
    mixed = [request if n % 2 else replace(request, task=None) for n, request in enumerate(named)]
    for n, (want, got) in enumerate(zip(model.predict_batch(named), model.predict_batch(mixed), strict=True)):
        assert (got.task, got.index) == (want.task, want.index)
        assert (got.chosen is None) == bool(n % 2)
        assert want.chosen is None
    alone = model.predict(image=PICTURE)
    assert alone.task == "toy_shape"


def test_a_text_is_needed_where_every_sample_had_one(model: AtlasModel, weights: BankWeights) -> None:
    """Of every kind of task; one that never had a text, or had one now and then, is asked with a picture alone."""
    for name, request in REQUESTS.items():
        if name == "toy_shape":
            assert model.predict_batch([request])[0].task == name
            continue
        with pytest.raises(DataError, match=f"{name} .*no text"):
            model.predict_batch([replace(request, text=None)])
    sometimes = AtlasModel.from_weights(_changed(weights, form=torch.tensor([1.0, 0.5, 0.0])), device="cpu")
    assert sometimes.predict("toy_pair", REQUESTS["toy_pair"].image).task == "toy_pair"
    for image in (None, PICTURE):
        texted = AtlasModel.from_weights(_changed(weights, form=torch.tensor([1.0, 1.0, 0.0])), device="cpu")
        with pytest.raises(DataError, match="toy_shape learnt from samples with a text of their own; no text was given"):
            texted.predict("toy_shape", image)


def test_what_is_unlike_everything_is_refused_naming_the_nearest_with_their_numbers(weights: BankWeights) -> None:
    far = AtlasModel.from_weights(_changed(weights, density_limit=torch.tensor(1e-6)), device="cpu")
    with pytest.raises(DataError, match=r"unlike everything learnt.*toy_shape \d+\.\d\d \(limit 0\.00\)"):
        far.predict(image=PICTURE)
    with pytest.raises(DataError, match=r"request 2 of 2.*unlike"):
        far.predict_batch([REQUESTS["toy_shape"], Request(None, PICTURE)])
    assert far.predict("toy_shape", PICTURE).task == "toy_shape", "a named task answers whatever it is given"


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request(None, [PICTURE, PICTURE]), "2 pictures, no text"),
        (Request(None, None, "alone"), "No pictures, a text"),
        (Request(None, None, "q", ("a", "b")), "2 choices"),
        (Request(), "No pictures, no text"),
    ],
)
def test_a_kind_of_sample_that_no_task_takes_is_refused(model: AtlasModel, request_: Request, says: str) -> None:
    with pytest.raises(DataError, match=f"(?i){says}.*no task with such samples"):
        model.predict_batch([request_])


def test_a_bank_without_signatures_says_to_name_the_task(weights: BankWeights) -> None:
    for old in (
        _changed(weights, form=None),
        replace(weights, tasks={k: replace(t, signature={}) for k, t in weights.tasks.items()}),
    ):
        model = AtlasModel.from_weights(old, device="cpu")
        with pytest.raises(ConfigError, match="without a signature") as caught:
            model.predict(image=PICTURE)
        assert "Name the task" in (caught.value.fix or "")
        assert model.predict("toy_shape", PICTURE).task == "toy_shape"


def test_features_are_those_that_the_signature_was_made_from(model: AtlasModel, weights: BankWeights, learnt: Toys) -> None:
    """The samples of toy_kin (no picture, three choices) through `predict`'s way, against the describing job's."""
    from itertools import islice

    job = next(j for j in learnt.bench.plan.jobs.values() if j.kind is JobKind.DESCRIBE and j.task.name == "toy_kin")
    ordinals, rows = observe_training(learnt.bench.context, job)
    with learnt.bench.context.training_stream(job, 0) as stream:
        batch = next(islice(stream.epochs_from(0, 1), 1))
    from atlas_dist.serve.mixed import TaskBatch

    key = next(key for key, task in weights.tasks.items() if task.learnt.name == "toy_kin")
    pixels = model._normalise(batch.pixels[:3, 0]).unsqueeze(1)
    asked = TaskBatch(key, batch.input_ids[:3], batch.attention_mask[:3], batch.token_type_ids[:3], pixels)
    (seen,) = model._mixed.frozen([asked])
    assert ordinals[:3] == batch.index[:3].tolist()
    torch.testing.assert_close(seen, rows[POOLED][:3], atol=1e-5, rtol=1e-4)


def test_a_signature_holds_what_samples_are_made_of_and_keeps_the_earlier_names(learnt: Toys, weights: BankWeights) -> None:
    forms = {task.learnt.name: task.signature[FORM].tolist() for task in weights.tasks.values()}
    assert forms == {
        "toy_shape": [1.0, 0.0, 0.0],
        "toy_kin": [0.0, 1.0, 1.0],
        "toy_ask": [1.0, 1.0, 0.0],
        "toy_pair": [1.0, 1.0, 0.0],
    }
    for task in weights.tasks.values():
        assert {f"{POOLED}/mean", f"{POOLED}/spread"} <= task.signature.keys()
        assert {f"{DENSITY}/{part}" for part in ("mean", "noise", "loadings", "freedom", "limit")} <= task.signature.keys()
    job = next(j for j in learnt.bench.plan.jobs.values() if j.kind is JobKind.DESCRIBE and j.task.name == "toy_ask")
    again = signature_tensors(observe_training(learnt.bench.context, job)[1])
    assert again.keys() == next(t for t in weights.tasks.values() if t.learnt.name == "toy_ask").signature.keys()


def test_the_configuration_of_these_tests_is_the_default_method() -> None:
    assert compose_config(["experiment=toy"]).method.name == "atlas"
