"""`bank similar`, and `predict` without a task: what they print, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from tests.kits.bank import toys
from tests.kits.shell import Command


def test_similar_tells_people_and_programs(atlas: Command) -> None:
    words = toys("method=atlas").words
    said = atlas("bank", "similar", "--task", "toy_ask", *words)
    assert said.code == 0, said.err
    assert "training samples, beside the bank of toy" in said.out
    about = json.loads(atlas("bank", "similar", "--task", "toy_ask", "--json", *words).out)
    assert about["task"] == "toy_ask"
    assert about["samples"] > 0
    assert {"task", "key", "similarity", "site_similarity", "retrieved"} == about["adapters"][0].keys()


def test_similar_names_the_tasks_that_there_are(atlas: Command) -> None:
    said = atlas("bank", "similar", "--task", "film", *toys("method=atlas").words)
    assert said.code == 2
    assert "toy_shape" in said.err


def test_an_unnamed_kind_that_no_task_takes_is_exit_3(atlas: Command, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    said = atlas("predict", "--image", "red.png", "--image", "red.png", *toys("method=atlas").words)
    assert said.code == 3
    assert "no task with such samples" in said.err


def test_lines_with_and_without_a_task(atlas: Command, tmp_path: Path) -> None:
    """A sample of the task's own: the text of toy_kin, which it knows."""
    learnt = toys("method=atlas")
    lines = [
        {"task": "toy_kin", "text": "what?", "choices": ["a", "b", "c"]},
        {"text": "what?", "choices": ["a", "b"]},
    ]
    (tmp_path / "ask.jsonl").write_text("\n".join(map(json.dumps, lines)))
    said = atlas("predict", "--jsonl", "ask.jsonl", *learnt.words)
    assert said.code == 3
    assert "ask.jsonl, line 2" in said.err


def test_an_old_bank_says_to_name_the_task(atlas: Command, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    said = atlas("predict", "--image", "red.png", *toys("method=atlas_paper").words)
    assert said.code == 2
    assert "--task NAME" in said.err
