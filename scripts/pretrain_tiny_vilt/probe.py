"""What the frozen backbone is worth: ``python -m scripts.pretrain_tiny_vilt.probe --checkpoint /tmp/tiny_vilt/main.pt``.

Reads the *training* split of each task only and carves it into probe-train and probe-val; the tasks' own validation data stays
unseen. Two probes a task: a linear readout of frozen features (pooled, and the mean over patches), and plain adapters (one
bottleneck of 48 at every site, the method's "individual adapters" baseline) with a head.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, ViltModel

from atlas_dist.model.backbone import load_backbone
from atlas_dist.model.backbones.vilt import VILT
from atlas_dist.model.vilt import accelerate_vilt
from scripts.pretrain_tiny_vilt.augment import normalise
from scripts.pretrain_tiny_vilt.backbone import run_backbone, tiny_config
from scripts.pretrain_tiny_vilt.words import MAX_TEXT, PROMPT

BATCH = 64
WIDTH = 48  # of a plain adapter


@dataclass
class Probe:
    """One task: texts [N, choices, T], pictures [M, 3, 64, 64] uint8, the picture of each sample, labels [N].

    With one choice a head scores ``classes``; with several, one shared scalar head scores each choice.
    """

    texts: Tensor
    pictures: Tensor
    picture_of: Tensor
    labels: Tensor
    train: Tensor
    val: Tensor

    @property
    def outputs(self) -> int:
        return 1 if self.texts.shape[1] > 1 else int(self.labels.max()) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint of train.py; without it the committed backbone")
    parser.add_argument("--work", type=Path, default=Path("/tmp/tiny_vilt"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--steps", type=int, default=900, help="adapter training steps; 0 = linear probes only")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = _load(arguments.checkpoint, arguments.work)
    for name in arguments.tasks:
        task = TASKS[name](arguments.data, tokenizer)
        result: dict[str, object] = {"task": name, **linear_probes(model, task)}
        started = time.monotonic()
        if arguments.steps:
            result["adapters"] = adapter_probe(model, task, arguments.steps)
            result["seconds"] = round(time.monotonic() - started)
        print(json.dumps(result), flush=True)


def _load(checkpoint: Path | None, work: Path) -> tuple[ViltModel, PreTrainedTokenizerFast]:
    if checkpoint is None:
        backbone = load_backbone("tiny")
        return backbone.model, backbone.tokenizer
    model = ViltModel(tiny_config())
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    return accelerate_vilt(model).eval().requires_grad_(False), tokenizer


# ---- probes -------------------------------------------------------------------------------------------------------------


def linear_probes(model: ViltModel, task: Probe, most: int = 6000) -> dict[str, float]:
    """Accuracy of a logistic readout of frozen features on probe-val; pictures with one text each only."""
    if task.outputs == 1:
        return {}
    scores = {}
    train, val = task.train[:most], task.val[:2000]
    features = {split: _features(model, task, rows) for split, rows in (("train", train), ("val", val))}
    for name in ("pooled", "mean"):
        fitted = _fit_linear(features["train"][name], task.labels[train], task.outputs)
        scores[name] = round(_accuracy(fitted(features["val"][name]), task.labels[val]), 4)
    return scores


@torch.no_grad()
def _features(model: ViltModel, task: Probe, rows: Tensor) -> dict[str, Tensor]:
    pooled, mean = [], []
    for part in rows.split(256):
        texts = task.texts[part, 0]
        hidden, top = run_backbone(model, texts, normalise(task.pictures[task.picture_of[part]]))
        pooled.append(top)
        mean.append(hidden[:, texts.shape[1] + 1 :].mean(dim=1))
    return {"pooled": torch.cat(pooled), "mean": torch.cat(mean)}


def _fit_linear(features: Tensor, labels: Tensor, classes: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(features.shape[1], affine=False), nn.Linear(features.shape[1], classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(40):
        for rows in torch.randperm(len(labels)).split(256):
            loss = functional.cross_entropy(model(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def adapter_probe(model: ViltModel, task: Probe, steps: int) -> float:
    """Accuracy on probe-val after training plain adapters and a head by the method's recipe."""
    torch.manual_seed(0)
    rng = Random(0)
    width = model.config.hidden_size
    head = nn.Sequential(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, task.outputs))
    with _adapters(model) as adapters:
        parameters = [*adapters.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=5e-4, betas=(0.9, 0.98), eps=1e-4, weight_decay=0.01)
        warm_up = 0.1 * steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / (steps - warm_up))
        )
        pool: list[int] = []
        for _ in range(steps):
            if len(pool) < BATCH:
                pool = rng.sample(task.train.tolist(), len(task.train))
            rows, pool = torch.tensor(pool[:BATCH]), pool[BATCH:]
            loss = functional.cross_entropy(_scores(model, head, task, rows), task.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            val = task.val[:2000]
            scores = torch.cat([_scores(model, head, task, rows) for rows in val.split(128)])
    return round(_accuracy(scores, task.labels[val]), 4)


def _scores(model: ViltModel, head: nn.Module, task: Probe, rows: Tensor) -> Tensor:
    """[B, classes], or [B, choices] from the shared scalar head."""
    texts = task.texts[rows]
    pixels = normalise(task.pictures[task.picture_of[rows]])
    choices = texts.shape[1]
    flat = texts.flatten(0, 1)
    flat = flat[:, : int((flat != 0).sum(dim=1).max())]
    with torch.autocast("cpu", torch.bfloat16):
        _, pooled = run_backbone(model, flat, pixels.repeat_interleave(choices, dim=0))
        logits = head(pooled)
    return logits.float().view(len(rows), -1)


@contextmanager
def _adapters(model: ViltModel) -> Iterator[nn.ModuleList]:
    """Plain adapters behind every site while the block lasts."""
    adapters = nn.ModuleList()
    handles = []
    for site in VILT.sites(model):
        down, up = nn.Linear(site.width, WIDTH), nn.Linear(WIDTH, site.width)
        for layer in (down, up):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        adapter = nn.Sequential(down, nn.SiLU(), up)
        adapters.append(adapter)
        hook = lambda _module, _inputs, output, adapter=adapter: output + adapter(output)  # noqa: E731
        handles.append(model.get_submodule(site.path).register_forward_hook(hook))
    try:
        yield adapters
    finally:
        for handle in handles:
            handle.remove()


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(dim=1) == labels).float().mean())


# ---- tasks: training split only ---------------------------------------------------------------------------------------


def cifar(data: Path, tokenizer: PreTrainedTokenizerFast) -> Probe:
    """CIFAR-10 photos, enlarged to 64 x 64; 8,000 + 2,000 of the 10,000 training pictures."""
    with zipfile.ZipFile(data / "cifar10_12k.zip") as files:
        paths = sorted(name for name in files.namelist() if "/train/" in name and name.endswith(".jpg"))
        pictures = torch.stack([_picture(files.read(path)) for path in paths])
    return _one_text(tokenizer, pictures, [path.split("/")[-2] for path in paths], val=2000)


def omniglot(data: Path, tokenizer: PreTrainedTokenizerFast) -> Probe:
    """Omniglot: 13 drawings a character to train, 3 to validate, of the 16 training drawings."""
    with zipfile.ZipFile(data / "omniglot_inat.zip") as files:
        table = json.loads(files.read("omniglot_inat/train2019.json"))
        label_of = {entry["image_id"]: entry["category_id"] for entry in table["annotations"]}
        pictures = torch.stack([_picture(files.read(f"omniglot_inat/{entry['file_name']}")) for entry in table["images"]])
    labels = [str(label_of[entry["id"]]).zfill(4) for entry in table["images"]]
    return _one_text(tokenizer, pictures, labels, val=3 * len(labels) // 16)


def easy_vqa(data: Path, tokenizer: PreTrainedTokenizerFast) -> Probe:
    """easy-VQA training questions, split by picture, one picture in ten to validate."""
    with zipfile.ZipFile(data / "easy_vqa_train.zip") as files:
        records = json.loads(files.read("easy_vqa/data/train/questions.json"))
        answers = files.read("easy_vqa/data/answers.txt").decode().split()
        images = sorted({record[2] for record in records})
        pictures = torch.stack([_picture(files.read(f"easy_vqa/data/train/images/{image}.png")) for image in images])
    place = {image: number for number, image in enumerate(images)}
    picture_of = torch.tensor([place[record[2]] for record in records])
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(0))
    held_out = picture_of[order] % 10 == 0
    return Probe(
        _encode(tokenizer, [[record[0]] for record in records]),
        pictures,
        picture_of,
        torch.tensor([answers.index(record[1]) for record in records]),
        order[~held_out],
        order[held_out],
    )


def trec(data: Path, tokenizer: PreTrainedTokenizerFast) -> Probe:
    """TREC as five choices: "question [SEP] type", with the mean picture; 4,600 train questions, the rest to validate."""
    with zipfile.ZipFile(data / "trec.zip") as files:
        lines = files.read("trec/derived_commonsenseqa_format/train_rand_split.jsonl").decode().splitlines()
    records = [json.loads(line) for line in lines]
    texts = [
        [f"{record['question']['stem']} [SEP] {choice['text']}" for choice in record["question"]["choices"]] for record in records
    ]
    labels = torch.tensor(["ABCDE".index(record["answerKey"]) for record in records])
    mean = torch.tensor([120, 114, 103], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(0))
    nowhere = torch.zeros(len(records), dtype=torch.long)
    return Probe(_encode(tokenizer, texts), mean, nowhere, labels, order[:4600], order[4600:])


TASKS = {"cifar10": cifar, "trec": trec, "easy_vqa": easy_vqa, "omniglot": omniglot}


def _one_text(tokenizer: PreTrainedTokenizerFast, pictures: Tensor, names: list[str], val: int) -> Probe:
    classes = sorted(set(names))
    labels = torch.tensor([classes.index(name) for name in names])
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    texts = _encode(tokenizer, [[PROMPT]]).expand(len(names), -1, -1)
    return Probe(texts, pictures, torch.arange(len(names)), labels, order[val:], order[:val])


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[list[str]]) -> Tensor:
    flat = [text for row in texts for text in row]
    encoded = tokenizer(flat, padding=True, truncation=True, max_length=MAX_TEXT)["input_ids"]
    return torch.tensor(encoded).view(len(texts), len(texts[0]), -1)


def _picture(content: bytes) -> Tensor:
    with Image.open(io.BytesIO(content)) as image:
        resized = image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(resized).transpose(2, 0, 1).copy())


if __name__ == "__main__":
    main()
