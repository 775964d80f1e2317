"""`atlas-dist serve` under load, beside one process a task: requests a second, p95, and the memory of each.

    python -m tests.bench.bench_serve_load [--backbone tiny] [--clients 16] [--requests 300] [--repeats 5] [--replicas 1 2]

The rivals serve the same four tasks of the same bank over the same routes (serve/web.py), on uvicorn without Ray, a process and a
port for each task; a process batches the samples of its own task. Every system may use every core. Clients ask as fast as they
are answered, in two mixes: the tasks evenly, and nine of ten samples for one task. The systems take turns, so that a busy machine
harms all alike. Before anything is timed, the answers of all are compared. Memory is the sum of PSS (pages that processes share
are counted once), Ray's own processes included.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from PIL import Image

TAG = "ATLAS_BENCH_TAG"
WAIT_MS, MAX_BATCH = 5.0, 16
START_S = 300.0


# ------------------------------------------------------------------------------------------------------------------ the rival


def serve_one_task(folder: str, port: int) -> None:
    """One process with one task: the same routes, and batches of its own samples."""
    import uvicorn

    from atlas_dist import AtlasModel
    from atlas_dist.serve.apart import answer_apart
    from atlas_dist.serve.batching import Batcher
    from atlas_dist.serve.settings import ServeSettings
    from atlas_dist.serve.web import Outcome, make_api
    from atlas_dist.serve.wire import Asked, Batch, task_about

    class Alone:
        def __init__(self) -> None:
            self.model = AtlasModel.from_pretrained(folder, device="cpu")
            self.tasks = [task_about(task) for task in self.model.weights.tasks.values()]
            self.batcher: Batcher[Asked, Outcome] = Batcher(self.work, most=MAX_BATCH, wait_s=WAIT_MS / 1e3)

        async def answer(self, asked: Asked) -> Outcome:
            return await self.batcher.ask(asked)

        async def work(self, batch: list[Asked]) -> list[Outcome]:
            results = await asyncio.to_thread(answer_apart, self.model.predict_batch, [asked.request for asked in batch])
            return [Outcome(result, Batch(samples=len(batch), tasks=1)) for result in results]

        def observe(self, task: str, outcome: str, seconds: float) -> None:
            pass

    api = make_api(Alone(), ServeSettings(bank=folder, open=True), "")
    uvicorn.run(api, host="127.0.0.1", port=port, log_level="error", access_log=False, timeout_keep_alive=90)


# --------------------------------------------------------------------------------------------------------------- both systems


@dataclass(frozen=True)
class System:
    """Something that answers: which port has a task."""

    name: str
    ports: dict[str, int]
    tag: str

    def memory(self) -> float:
        """MB, the sum of PSS over everything that was started for it."""
        total = 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.tag.encode() in (folder / "environ").read_bytes():
                    found = re.search(r"^Pss:\s+(\d+) kB", (folder / "smaps_rollup").read_text(), re.MULTILINE)
                    total += int(found[1]) if found else 0
            except OSError:
                continue
        return total / 1024


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(command: Sequence[str], tag: str, port: int, threads: int) -> Iterator[None]:
    """A process that answers /healthz before this goes on, and is ended afterwards."""
    env = {**os.environ, TAG: tag, "OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": "cpu"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_S
        while time.monotonic() < until and process.poll() is None:
            try:
                if get(port, "/healthz")[0] == 200:
                    break
            except OSError:
                time.sleep(0.5)
        else:
            raise SystemExit(f"{' '.join(command)} does not answer")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read()


@contextmanager
def ours(bank: Path, tasks: Sequence[str], replicas: int, cores: int) -> Iterator[System]:
    port, tag = free_port(), uuid.uuid4().hex
    command = [sys.executable, "-m", "atlas_dist", "serve", "--from", str(bank), "--port", str(port)]
    command += ["--replicas", str(replicas), "--cpus", str(cores / replicas)]
    command += ["--wait-ms", str(WAIT_MS), "--max-batch", str(MAX_BATCH)]
    with started(command, tag, port, max(1, cores // replicas)):
        yield System(f"atlas-dist serve, {replicas} replica{'s' * (replicas > 1)}", dict.fromkeys(tasks, port), tag)


@contextmanager
def a_process_a_task(folders: dict[str, Path]) -> Iterator[System]:
    tag = uuid.uuid4().hex
    ports = {task: free_port() for task in folders}
    with ExitStack() as stack:
        for task, folder in folders.items():
            command = [sys.executable, "-m", "tests.bench.bench_serve_load", "--one", str(folder), str(ports[task])]
            stack.enter_context(started(command, tag, ports[task], 1))
        yield System(f"a process a task, {len(folders)} processes", ports, tag)


# ------------------------------------------------------------------------------------------------------------------- the load


def samples(tasks: Sequence[Any], count: int) -> dict[str, list[bytes]]:
    """Bodies for each task: pictures and texts of the kinds that they learnt from."""
    draw = np.random.default_rng(0)

    def picture() -> str:
        out = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (128, 128, 3), np.uint8)).save(out, "JPEG", quality=90)
        return base64.b64encode(out.getvalue()).decode()

    def body(task: Any, number: int) -> bytes:
        ask: dict[str, Any] = {"task": task["name"]}
        if task["kind"] == "choice":
            ask |= {"text": f"red is to rose {number}", "choices": [f"as one is to {n}" for n in range(task["classes"])]}
        else:
            ask |= {"image": [picture() for _ in range(task["images"])]}
            ask |= {"text": f"what is it, number {number}?"} if task["needs_text"] else {}
        return json.dumps(ask).encode()

    return {task["name"]: [body(task, number) for number in range(count)] for task in tasks}


def ask(connection: http.client.HTTPConnection, body: bytes) -> dict[str, Any]:
    connection.request("POST", "/v1/predict", body, {"content-type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    assert response.status == 200, text
    answer: dict[str, Any] = json.loads(text)
    return answer


def load(system: System, bodies: dict[str, list[bytes]], order: Sequence[str], clients: int) -> tuple[float, float, float]:
    """(requests a second, p95 in ms, mean samples a batch) of `order` asked by so many clients."""

    def client(number: int) -> list[tuple[float, int]]:
        open_to = {port: http.client.HTTPConnection("127.0.0.1", port, timeout=120) for port in set(system.ports.values())}
        took = []
        for at in range(number, len(order), clients):
            task = order[at]
            began = time.perf_counter()
            answer = ask(open_to[system.ports[task]], bodies[task][at % len(bodies[task])])
            took.append((time.perf_counter() - began, answer["batch"]["samples"]))
        return took

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        took = [each for part in pool.map(client, range(clients)) for each in part]
    whole = time.perf_counter() - began
    return len(took) / whole, 1e3 * quantiles([t for t, _ in took], n=20)[-1], sum(n for _, n in took) / len(took)


def mixes(tasks: Sequence[str], count: int) -> dict[str, list[str]]:
    draw = random.Random(0)
    even = [tasks[n % len(tasks)] for n in range(count)]
    skewed = [tasks[0] if draw.random() < 0.9 else draw.choice(tasks[1:]) for _ in range(count)]
    draw.shuffle(even)
    return {"evenly": even, "9 of 10 for one": skewed}


def same_answers(systems: Sequence[System], bodies: dict[str, list[bytes]]) -> None:
    for task, asked in bodies.items():
        scores = [ask(http.client.HTTPConnection("127.0.0.1", s.ports[task], timeout=60), asked[0])["scores"] for s in systems]
        for other in scores[1:]:
            np.testing.assert_allclose(other, scores[0], atol=1e-3)


def banks(folder: Path, backbone: str) -> dict[str, Path]:
    """Learn the four toy tasks and export them, together ("") and each alone; what lies there already is used."""
    from atlas_dist.bank.package import export_bank
    from atlas_dist.bank.weights import load_weights
    from atlas_dist.runs.stores import open_shards
    from tests.kits.bank import toys

    if kept := {path.name: path for path in folder.iterdir()}:
        return {"": kept.pop("all"), **kept}
    learnt = toys("method=atlas", f"backbone={backbone}", "train.budget.max_steps=2")  # speed does not depend on what was learnt
    names = [found.name for found in learnt.bank.learnt.values()]
    out = {}
    for name in ("", *names):
        weights = load_weights(learnt.store, learnt.bank, [name] if name else [], shards=open_shards(learnt.config))
        out[name] = folder / (name or "all")
        export_bank(learnt.store, learnt.bank, weights, out[name])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "PORT"), help=argparse.SUPPRESS)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=300, help="of each mix")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--keep", type=Path, help="folder for the banks, so that they are learnt once")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    if args.one:
        serve_one_task(args.one[0], int(args.one[1]))
        return
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        folders = banks(folder, args.backbone)
        whole = folders.pop("")
        tasks = sorted(folders)
        systems = [stack.enter_context(ours(whole, tasks, replicas, cores)) for replicas in args.replicas]
        systems.append(stack.enter_context(a_process_a_task(folders)))
        about = json.loads(get(systems[0].ports[tasks[0]], "/v1/tasks")[1])["tasks"]
        bodies = samples(about, 16)
        same_answers(systems, bodies)
        print(
            f"backbone {args.backbone}, {len(tasks)} tasks, {cores} cores, {args.clients} clients, {args.requests} requests a mix"
        )
        print(f"median of {args.repeats}; batches of {MAX_BATCH} samples at most, {WAIT_MS:g} ms to wait")
        print(f"{'':<32} {'mix':<16} {'requests/s':>10} {'p95 ms':>8} {'batch':>6} {'PSS MB':>8}")
        for mix, order in mixes(tasks, args.requests).items():
            runs: dict[str, list[tuple[float, float, float]]] = {system.name: [] for system in systems}
            for repeat in range(args.repeats + 1):
                for system in systems:
                    measured = load(system, bodies, order, args.clients)
                    if repeat:  # the first one warms up
                        runs[system.name].append(measured)
            for system in systems:
                rate, p95, batch = (median(column) for column in zip(*runs[system.name], strict=True))
                print(f"{system.name:<32} {mix:<16} {rate:>10.1f} {p95:>8.0f} {batch:>6.1f} {system.memory():>8.0f}", flush=True)


if __name__ == "__main__":
    main()
