"""The HTTP surface without Ray: answers are the model's, what is wrong is said as on the command line, and limits hold."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from atlas_dist import AtlasModel
from atlas_dist.bank.weights import load_weights
from atlas_dist.data.images import PictureLimits
from atlas_dist.errors import DataError
from atlas_dist.runs.stores import open_shards
from atlas_dist.serve.apart import answer_apart
from atlas_dist.serve.settings import ServeSettings
from atlas_dist.serve.web import Outcome, make_api
from atlas_dist.serve.wire import Ask, Asked, Batch, TaskAbout, request_of, task_about
from tests.kits.bank import toys

TOKEN = "a token that is long enough".replace(" ", "-")
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
SETTINGS = ServeSettings(bank="unused", max_body_mb=0.2, max_megapixels=1.0, max_samples=4)


def png(width: int = 50, height: int = 40, seed: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def plain(width: int, height: int, colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class ByModel:
    """Answers one sample at a time, and notes what it is told."""

    def __init__(self, model: AtlasModel) -> None:
        self.model = model
        self.noted: list[tuple[str, str]] = []
        self.fails: Exception | None = None

    @property
    def tasks(self) -> Sequence[TaskAbout]:
        return [task_about(task) for task in self.model.weights.tasks.values()]

    async def answer(self, asked: Asked) -> Outcome:
        if self.fails:
            raise self.fails

        def predict(requests: Any) -> Any:
            return self.model.predict_batch(requests, output_adapter_coefficients=asked.coefficients)

        (result,) = answer_apart(predict, [asked.request])
        return Outcome(result, Batch(samples=1, tasks=1))

    def observe(self, task: str, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        self.noted.append((task, outcome))


@pytest.fixture(scope="module")
def model() -> AtlasModel:
    learnt = toys("method=atlas")
    return AtlasModel.from_weights(load_weights(learnt.store, learnt.bank, shards=open_shards(learnt.config)))


@pytest.fixture
def service(model: AtlasModel) -> ByModel:
    return ByModel(model)


@pytest.fixture
def client(service: ByModel) -> Iterator[TestClient]:
    with TestClient(make_api(service, SETTINGS, "")) as client:
        yield client


@pytest.fixture
def locked(service: ByModel) -> Iterator[TestClient]:
    with TestClient(make_api(service, SETTINGS, DIGEST)) as client:
        yield client


SAMPLES: dict[str, dict[str, Any]] = {
    "toy_shape": {"image": b64(png())},
    "toy_kin": {"text": "red is to rose", "choices": ["as blue is to sky", "as one is to two", "as left"]},
    "toy_ask": {"image": b64(png(seed=1)), "text": "what colour is it?"},
    "toy_pair": {"image": [b64(png(seed=2)), b64(png(seed=3))], "text": "the left one is bigger"},
}


def of_model(model: AtlasModel, task: str | None, sample: dict[str, Any]) -> Any:
    image = sample.get("image")
    pictures = [base64.b64decode(part) for part in ([image] if isinstance(image, str) else image or [])]
    return model.predict(task, pictures or None, sample.get("text"), sample.get("choices", ()))


@pytest.mark.parametrize("task", SAMPLES)
def test_a_json_sample_is_answered_as_by_the_model(client: TestClient, model: AtlasModel, service: ByModel, task: str) -> None:
    got = client.post("/v1/predict", json={"task": task, **SAMPLES[task]})
    wanted = of_model(model, task, SAMPLES[task])
    assert got.status_code == 200, got.text
    answer = got.json()
    assert (answer["task"], answer["index"], answer["answer"]) == (task, wanted.index, wanted.answer)
    np.testing.assert_allclose(answer["scores"], wanted.scores, rtol=1e-12)
    assert answer["adapter_coefficients"] is None and answer["candidates"] is None
    assert service.noted == [(task, "answered")]


@pytest.mark.parametrize("task", SAMPLES)
def test_a_form_is_answered_as_by_the_model(client: TestClient, model: AtlasModel, task: str) -> None:
    sample = SAMPLES[task]
    image = sample.get("image", [])
    parts: list[Any] = [("task", (None, task)), ("coefficients", (None, "true"))]
    parts += [("image", ("p.png", base64.b64decode(part))) for part in ([image] if isinstance(image, str) else image)]
    parts += [("text", (None, sample["text"]))] if "text" in sample else []
    parts += [("choices", (None, choice)) for choice in sample.get("choices", ())]
    got = client.post("/v1/predict", files=parts)
    assert got.status_code == 200, got.text
    wanted = of_model(model, task, sample)
    assert (got.json()["index"], got.json()["answer"]) == (wanted.index, wanted.answer)
    assert got.json()["adapter_coefficients"] is not None


def test_a_sample_without_a_task_says_how_its_task_was_found(client: TestClient, model: AtlasModel) -> None:
    image = plain(40, 30)
    got = client.post("/v1/predict", files={"image": ("p.png", image)})
    assert got.status_code == 200, got.text
    wanted = model.predict(image=image)
    assert wanted.chosen is not None and wanted.chosen.best is not None
    first = got.json()["candidates"][0]
    assert (got.json()["task"], first["task"]) == (wanted.task, wanted.task)
    assert first["distance"] == pytest.approx(wanted.chosen.best.distance)


def test_one_wrong_sample_of_a_list_leaves_the_others_their_answers(client: TestClient, service: ByModel) -> None:
    asked = [{"task": "toy_shape", **SAMPLES["toy_shape"]}, {"task": "nope"}, {"task": "toy_kin", **SAMPLES["toy_kin"]}]
    got = client.post("/v1/predict", json={"requests": asked})
    assert got.status_code == 200
    first, second, third = got.json()["answers"]
    assert (first["task"], third["task"]) == ("toy_shape", "toy_kin")
    assert second["error"]["message"] == "This bank has no task 'nope'."
    assert "toy_pair" in second["error"]["fix"]
    assert sorted(service.noted) == [("", "refused"), ("toy_kin", "answered"), ("toy_shape", "answered")]


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({"task": "toy_shape", "image": "https://example.org/p.png"}, "this service fetches none"),
        ({"task": "toy_shape", "image": "data:image/png;base64,AAAA"}, "this service fetches none"),
        ({"task": "toy_shape", "image": "file:///etc/passwd"}, "is a URL"),
        ({"task": "toy_shape", "image": "/etc/passwd"}, "names of files mean nothing here|neither JPEG nor PNG"),
        ({"task": "toy_shape", "image": "cGxhaW4gdGV4dA=="}, "neither JPEG nor PNG"),
        ({"task": "toy_shape", "image": b64(png())[:200]}, "Cannot read a picture"),
        ({"task": "toy_pair", "image": b64(png()), "text": "x"}, "looks at 2 pictures"),
        ({"task": "toy_kin", "text": "a", "choices": ["b"]}, "chooses between 3 texts"),
        ({"task": "toy_ask", "image": b64(png())}, "no text was given"),
        ({"task": "toy_shape", "image": b64(plain(1200, 900))}, "more than the limit of 1000000"),
        ({"task": "toy_shape", "imgae": "x"}, "did you mean image"),
        ({"task": 3}, "task"),
        ({"text": ["a", "b", "c"], "task": "toy_shape"}, "3 segments"),
        ({"text": "a", "choices": ["b", "c"]}, "no task with such samples"),
        ({"task": "toy_shape", "text": ["a" * 40_000, "b" * 40_000]}, "80000 characters; the limit is 65536"),
        ([], "The body is a list"),
        ({"requests": []}, "requests"),
        ({"requests": [{}] * 5}, "5 samples; the limit is 4"),
    ],
)
def test_what_is_asked_wrongly_is_422_with_cause_and_fix(client: TestClient, sample: Any, said: str) -> None:
    got = client.post("/v1/predict", json=sample)
    error = got.json()["error"]
    assert got.status_code == 422, got.text
    assert any(part in error["message"] + error["fix"] for part in said.split("|")), error
    assert error["type"] in ("DataError", "ConfigError")


def test_a_sample_unlike_everything_learnt_is_422_and_names_the_nearest_tasks(client: TestClient) -> None:
    got = client.post("/v1/predict", json={"image": b64(png(64, 64, seed=5))})
    error = got.json()["error"]
    assert got.status_code == 422, got.text
    assert "unlike everything learnt" in error["message"]
    assert [near["task"] for near in error["nearest"]] == ["toy_shape"]
    assert error["nearest"][0]["distance"] > error["nearest"][0]["limit"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "no UTF-8", "too deep"])
def test_what_cannot_be_read_is_400(client: TestClient, body: bytes) -> None:
    got = client.post("/v1/predict", content=body, headers={"content-type": "application/json"})
    assert got.status_code == 400
    assert "is not JSON" in got.json()["error"]["message"]


def test_a_form_that_cannot_be_read_is_400(client: TestClient) -> None:
    got = client.post("/v1/predict", content=b"x", headers={"content-type": "multipart/form-data"})
    assert got.status_code == 400 and got.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_type_is_415(client: TestClient, kind: str) -> None:
    got = client.post("/v1/predict", content=b"{}", headers={"content-type": kind})
    assert got.status_code == 415
    assert "application/json or multipart" in got.json()["error"]["fix"]


@pytest.mark.parametrize(
    "fields", [{"image": "text"}, {"other": "x"}, {"coefficients": "maybe"}], ids=["image is text", "unknown", "no boolean"]
)
def test_a_wrong_field_of_a_form_is_422(client: TestClient, fields: dict[str, str]) -> None:
    got = client.post("/v1/predict", files={name: (None, value) for name, value in fields.items()})
    assert got.status_code == 422, got.text


def test_a_body_above_the_limit_is_413_whether_or_not_it_says_its_length(client: TestClient) -> None:
    large = b" " * 250_000

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(large), 50_000):
            yield large[start : start + 50_000]

    for content in (large, pieces()):
        got = client.post("/v1/predict", content=content, headers={"content-type": "application/json"})
        assert got.status_code == 413
        assert "larger than 0.2 MB" in got.json()["error"]["message"]
    assert client.post("/v1/predict", files={"image": ("p.png", large)}).status_code == 413
    within = b'{"task": "toy_kin", "text": "a"}' + b" " * 100_000
    got = client.post("/v1/predict", content=within, headers={"content-type": "application/json"})
    assert got.status_code == 422, "it is read to its end"


def test_the_token_opens_and_nothing_else_does(locked: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for value in ("", "Bearer nope", f"Basic {TOKEN}", TOKEN, f"Bearer {DIGEST}"):
        wrong = {"authorization": value} if value else {}
        for method, path in (("GET", "/v1/tasks"), ("POST", "/v1/predict"), ("GET", "/elsewhere")):
            got = locked.request(method, path, headers=wrong)
            assert (got.status_code, got.headers["www-authenticate"]) == (401, "Bearer")
            assert TOKEN not in got.text
    right = {"authorization": f"Bearer {TOKEN}"}
    assert locked.get("/v1/tasks", headers=right).status_code == 200
    assert locked.post("/v1/predict", json={"task": "toy_kin", **SAMPLES["toy_kin"]}, headers=right).status_code == 200
    assert TOKEN not in caplog.text


def test_health_and_the_page_need_no_token_and_tell_nothing_of_the_bank(locked: TestClient) -> None:
    assert locked.get("/healthz").json() == {"status": "ok", "tasks": 4}
    for path in ("/docs", "/openapi.json"):
        got = locked.get(path)
        assert got.status_code == 200 and "toy_" not in got.text


def test_the_page_describes_both_kinds_of_bodies(locked: TestClient) -> None:
    page = locked.get("/openapi.json").json()
    post = page["paths"]["/v1/predict"]["post"]
    content = post["requestBody"]["content"]
    one, several = content["application/json"]["schema"]["anyOf"]
    form = content["multipart/form-data"]["schema"]
    assert {"task", "image", "text", "choices", "coefficients"} == set(form["properties"])
    assert set(one["properties"]) == {*form["properties"], "earlier"}
    assert several["properties"]["requests"]["items"] == one
    assert {"200", "400", "401", "413", "415", "422"} <= set(post["responses"])
    assert post["security"] == [{"HTTPBearer": []}]


def test_tasks_are_described(client: TestClient) -> None:
    tasks = {task["name"]: task for task in client.get("/v1/tasks").json()["tasks"]}
    assert list(tasks) == ["toy_shape", "toy_kin", "toy_ask", "toy_pair"]
    assert (tasks["toy_pair"]["kind"], tasks["toy_pair"]["images"], tasks["toy_pair"]["needs_text"]) == ("pair", 2, True)
    assert "red circle" in tasks["toy_shape"]["labels"]
    assert all(task["found"] for task in tasks.values())


def test_what_nobody_foresaw_is_500_and_stays_here(
    client: TestClient, service: ByModel, caplog: pytest.LogCaptureFixture
) -> None:
    service.fails = RuntimeError("a secret of ours")
    got = client.post("/v1/predict", json={"task": "toy_kin", **SAMPLES["toy_kin"]})
    assert got.status_code == 500
    assert "secret" not in got.text
    assert "a secret of ours" in caplog.text
    assert service.noted == [("toy_kin", "failed")]
    service.fails = DataError("wrong", fix="right")
    assert client.post("/v1/predict", json={"task": "toy_kin"}).status_code == 422


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("GET", "/v1/predict", 405)])
def test_other_paths_are_answered_in_json(client: TestClient, method: str, path: str, status: int) -> None:
    got = client.request(method, path)
    assert got.status_code == status
    assert "/docs" in got.json()["error"]["fix"]


def test_turns_before_a_question_go_along_in_json_alone_and_count_as_its_text(client: TestClient) -> None:
    ask = Ask(task="say", text="big?", earlier=[("red?", "yes")])
    assert request_of(ask, PictureLimits(SETTINGS.max_pixels)).request.earlier == (("red?", "yes"),)
    with pytest.raises(DataError, match="texts have 65540 characters"):
        request_of(Ask(task="say", text="big?", earlier=[("x" * (1 << 16), "")]), PictureLimits(SETTINGS.max_pixels))
    given = {"task": "toy_ask", "image": b64(png()), "text": "big?", "earlier": [["red?", "yes"]]}
    refused = client.post("/v1/predict", json=given)
    assert refused.status_code == 422 and "toy_ask holds no conversations" in refused.json()["error"]["message"]
    form = client.post("/v1/predict", data={"task": "toy_ask", "text": "big?", "earlier": "red?"}, files={"image": png()})
    assert form.status_code == 422 and "no field 'earlier'" in form.json()["error"]["message"]
