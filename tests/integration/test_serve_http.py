"""`atlas-dist serve` as a user starts it: a real Ray Serve on loopback, mixed requests at the same time, SIGTERM.

Invariants defended here: answers are those of `AtlasModel.predict`, whatever shares their batch; samples of different tasks do
share one; the token and the limits hold through Ray's proxy; after the end no process of it is left.
"""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from atlas_dist import AtlasModel
from atlas_dist.bank.package import export_bank
from atlas_dist.bank.weights import load_weights
from atlas_dist.runs.stores import open_shards
from tests.kits.bank import toys

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
TOKEN = "only-for-this-test-0123456789"
TAG = "ATLAS_SERVE_TAG"
START_S, STOP_S, METRICS_S = 300.0, 120.0, 60.0


@dataclass
class Served:
    """The command, as it runs."""

    process: subprocess.Popen[str]
    tag: str
    folder: Path
    url: str = ""
    metrics: str = ""
    said: list[str] = field(default_factory=list)

    def post(self, **options: Any) -> httpx2.Response:
        return httpx2.post(f"{self.url}/v1/predict", headers={"authorization": f"Bearer {TOKEN}"}, timeout=60, **options)

    def left(self) -> list[str]:
        """Command lines of processes that were started by it and are still there."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.tag.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    learnt, folder = toys("method=atlas"), tmp_path_factory.mktemp("served") / "bank"
    export_bank(learnt.store, learnt.bank, load_weights(learnt.store, learnt.bank, shards=open_shards(learnt.config)), folder)
    return folder


@pytest.fixture(scope="module")
def served(bank: Path) -> Iterator[Served]:
    tag = uuid.uuid4().hex
    command = [sys.executable, "-m", "atlas_dist", "serve", "--from", str(bank), "--port", "0", "--max-body-mb", "0.5"]
    command += ["--wait-ms", "200", "--max-megapixels", "2"]
    environment = {**os.environ, TAG: tag, "ATLAS_SERVE_TOKEN": TOKEN, "ATLAS_DEBUG": ""}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    running = Served(process, tag, bank)
    assert process.stdout is not None
    until = time.monotonic() + START_S
    for line in process.stdout:
        running.said.append(line)
        if "Ctrl-C" in line or time.monotonic() > until:
            break
    text = "".join(running.said)
    found = re.search(r"listening on (\S+):", text), re.search(r"metrics +(\S+)", text)
    assert found[0] and found[1], text
    running.url, running.metrics = found[0][1], found[1][1]
    yield running
    process.kill()
    process.wait()


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def samples(seed: int) -> list[tuple[str, list[bytes], str | None, list[str]]]:
    """One of each task: task, pictures, text, choices."""
    return [
        ("toy_shape", [png(seed)], None, []),
        ("toy_kin", [], f"red is to rose {seed}", ["as blue is to sky", "as one is to two", "as left"]),
        ("toy_ask", [png(seed + 100)], "what colour is it?", []),
        ("toy_pair", [png(seed + 200), png(seed + 300)], "the left one is bigger", []),
    ]


def as_json(sample: tuple[str, list[bytes], str | None, list[str]]) -> dict[str, Any]:
    task, pictures, text, choices = sample
    images = [base64.b64encode(picture).decode() for picture in pictures]
    return {"task": task, "image": images, "text": text, "choices": choices}


def as_form(sample: tuple[str, list[bytes], str | None, list[str]]) -> list[Any]:
    task, pictures, text, choices = sample
    parts: list[Any] = [("task", (None, task)), *(("image", ("p.png", picture)) for picture in pictures)]
    return parts + [("text", (None, text))] * (text is not None) + [("choices", (None, choice)) for choice in choices]


def test_it_says_where_it_listens_and_never_the_token(served: Served) -> None:
    text = "".join(served.said)
    assert "toy_shape, toy_kin, toy_ask, toy_pair" in text
    assert "$ATLAS_SERVE_TOKEN" in text and TOKEN not in text


def test_mixed_requests_at_the_same_time_get_the_models_answers(served: Served) -> None:
    asked = [sample for seed in range(4) for sample in samples(seed)]
    ways = [{"json": as_json(s)} if n % 2 else {"files": as_form(s)} for n, s in enumerate(asked)]
    with ThreadPoolExecutor(len(asked)) as pool:
        replies = list(pool.map(lambda way: served.post(**way), ways))
    model = AtlasModel.from_pretrained(served.folder, device="cpu")
    for (task, pictures, text, choices), reply in zip(asked, replies, strict=True):
        assert reply.status_code == 200, reply.text
        answer, wanted = reply.json(), model.predict(task, pictures or None, text, choices)
        assert (answer["task"], answer["index"], answer["answer"]) == (task, wanted.index, wanted.answer)
        np.testing.assert_allclose(answer["scores"], wanted.scores, atol=1e-4)  # products of larger batches round differently
    assert max(reply.json()["batch"]["tasks"] for reply in replies) > 1, "samples of different tasks shared a batch"


def test_a_list_of_samples_of_all_tasks_is_one_batch_and_a_wrong_one_is_alone(served: Served) -> None:
    asked = [*map(as_json, samples(9)), {"task": "toy_shape", "image": "http://example.org/p.png"}, {"task": "nope", "text": "a"}]
    answers = served.post(json={"requests": asked}).json()["answers"]
    assert [answer["batch"]["tasks"] for answer in answers[:4]] == [4] * 4
    assert "fetches none" in answers[4]["error"]["message"]
    assert "no task 'nope'" in answers[5]["error"]["message"]


def test_the_token_and_the_limits_hold_through_rays_proxy(served: Served) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}):
        got = httpx2.get(f"{served.url}/v1/tasks", headers=headers)
        assert got.status_code == 401, got.text
    assert httpx2.get(f"{served.url}/healthz").json() == {"status": "ok", "tasks": 4}
    large = served.post(files={"image": ("p.png", b"\0" * 600_000)})
    assert large.status_code == 413 and "0.5 MB" in large.text
    out = io.BytesIO()
    Image.new("1", (2000, 1500)).save(out, "PNG")
    wide = served.post(files={"image": ("p.png", out.getvalue())})
    assert wide.status_code == 422 and "more than the limit of 2000000" in wide.text


def test_metrics_count_the_samples_of_each_task(served: Served) -> None:
    assert served.post(json=as_json(samples(1)[1])).status_code == 200
    until, text = time.monotonic() + METRICS_S, ""
    while time.monotonic() < until and 'outcome="answered",task="toy_kin"' not in text:
        time.sleep(1.0)
        text = httpx2.get(served.metrics, timeout=30).text
    assert re.search(r'ray_atlas_serve_requests_total\{[^}]*outcome="answered",task="toy_kin"\} [1-9]', text)
    assert "ray_atlas_serve_batch_samples_count" in text
    assert TOKEN not in text


def test_sigterm_ends_it_and_leaves_nothing(served: Served) -> None:
    assert len(served.left()) > 3, "the driver, Ray's processes, the replica"
    served.process.send_signal(signal.SIGTERM)
    assert served.process.stdout is not None
    rest = served.process.communicate(timeout=STOP_S)[0]
    assert served.process.returncode == 0, rest
    assert rest.strip().splitlines() == ["stopped"]
    until = time.monotonic() + 10.0
    while served.left() and time.monotonic() < until:
        time.sleep(0.2)
    assert served.left() == []
