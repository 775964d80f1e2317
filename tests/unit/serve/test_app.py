"""The application without a Ray: samples of different tasks share a forward pass, and each gets the answer it would get alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atlas_dist import AtlasModel
from atlas_dist.bank.package import export_bank
from atlas_dist.bank.weights import load_weights
from atlas_dist.errors import ConfigError, DataError
from atlas_dist.runs.stores import open_shards
from atlas_dist.serve import Prediction, Request
from atlas_dist.serve.app import NAME, Replica, app
from atlas_dist.serve.guard import TOKEN
from atlas_dist.serve.mixed import MixedModel, TaskBatch
from atlas_dist.serve.web import Outcome
from atlas_dist.serve.wire import Asked
from tests.kits.bank import toys

PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (50, 70, 3), np.uint8))
ASKED = [
    Request("toy_shape", PICTURE),
    Request("toy_kin", None, "red is to rose", ("as blue is to sky", "as one is to two", "as left")),
    Request("toy_ask", PICTURE, "what colour is it?"),
    Request("toy_pair", [PICTURE, PICTURE.rotate(90)], "the left one is bigger"),
]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    learnt, folder = toys("method=atlas"), tmp_path_factory.mktemp("served") / "bank"
    export_bank(learnt.store, learnt.bank, load_weights(learnt.store, learnt.bank, shards=open_shards(learnt.config)), folder)
    return folder


def together(bank: Path, asked: Sequence[Asked], **settings: Any) -> list[Outcome]:
    """All at once, in this process."""

    async def all_at_once() -> list[Outcome]:
        served = Replica({"bank": str(bank), "open": True, "wait_ms": 500.0, **settings}, "")
        return await asyncio.gather(*(served.answer(each) for each in asked))

    return asyncio.run(all_at_once())


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The tasks of every forward pass."""
    seen: list[list[str]] = []
    whole = MixedModel.__call__

    def noted(self: MixedModel, batches: Sequence[TaskBatch]) -> Any:
        seen.append([batch.key for batch in batches])
        return whole(self, batches)

    monkeypatch.setattr(MixedModel, "__call__", noted)
    return seen


def test_four_tasks_share_one_forward_pass(bank: Path, passes: list[list[str]]) -> None:
    outcomes = together(bank, [Asked(request, coefficients=False) for request in ASKED])
    assert [len(tasks) for tasks in passes] == [4]
    model = AtlasModel.from_pretrained(bank)
    for request, outcome in zip(ASKED, outcomes, strict=True):
        assert (outcome.batch.samples, outcome.batch.tasks) == (4, 4)
        assert isinstance(outcome.result, Prediction)
        alone = model.predict(request.task, request.image, request.text, request.choices)
        assert (outcome.result.task, outcome.result.index) == (request.task, alone.index)
        np.testing.assert_allclose(outcome.result.scores, alone.scores, atol=1e-5)


def test_a_batch_has_at_most_so_many_samples(bank: Path, passes: list[list[str]]) -> None:
    outcomes = together(bank, [Asked(request, coefficients=False) for request in ASKED], max_batch=2)
    assert [len(tasks) for tasks in passes] == [2, 2]
    assert {outcome.batch.samples for outcome in outcomes} == {2}


def test_a_wrong_neighbour_and_one_who_asks_for_coefficients_change_nothing(bank: Path) -> None:
    wrong = Asked(Request("toy_shape", b"\x89PNG\r\n\x1a\n cut"), coefficients=False)
    asked = [Asked(request, coefficients=request.task == "toy_ask") for request in ASKED]
    *good, bad = together(bank, [*asked, wrong])
    assert isinstance(bad.result, DataError)
    assert "request" not in bad.result.message, "it is the client's only one: it has no number"
    for outcome in good:
        assert isinstance(outcome.result, Prediction)
        assert (outcome.result.adapter_coefficients is not None) == (outcome.result.task == "toy_ask")


def test_the_builder_wants_a_token_or_to_hear_that_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(ConfigError, match=TOKEN):
        app({"bank": "/bank"})
    assert app({"bank": "/bank", "open": True, "replicas": "2"})._bound_deployment.name == NAME
    monkeypatch.setenv(TOKEN, "0123456789abcdef")
    built = app({"bank": "/bank", "max_waiting": 7})._bound_deployment
    assert "0123456789abcdef" not in repr(built.init_args), "Ray shows what it starts replicas with"
    assert built.max_ongoing_requests == 7


def test_the_builder_names_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="did you mean max_batch"):
        app({"bank": "/bank", "max_btach": 3})
