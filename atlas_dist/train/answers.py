"""Answers that are written: right ones as tokens, written ones as texts, and how near the two come (core/answers.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from atlas_dist.core.answers import exact_match, token_f1
from atlas_dist.core.types import NO_TOKEN, TaskSpec
from atlas_dist.data.decode import AnswerEncoder, ConversationPrompt
from atlas_dist.errors import ConfigError
from atlas_dist.model.atlas import AdaptedModel
from atlas_dist.model.backbone import Backbone
from atlas_dist.model.backbones import rows_go_on


class Judged(NamedTuple):
    """What was written for B samples. `score` (exact match) and `f1` [B], 0 to 1; `answers` [B, 2M]: the tokens that were
    written, as numbers, and their logarithmic probabilities, which stand for the bits of what was answered."""

    score: Tensor
    f1: Tensor
    answers: Tensor


@dataclass(frozen=True)
class Judge:
    """Has a model write, at most `most` tokens an answer, and compares.

    `in_step`: every rank writes as many tokens as the one whose answers are the longest.
    """

    tokenizer: PreTrainedTokenizerFast
    most: int
    in_step: bool = False

    def __call__(self, model: AdaptedModel, batch: Mapping[str, Tensor], right: Tensor) -> Judged:
        """`right`: tokens of the right answers, [B, M]. A sample without one scores 0."""
        tokens, log_probs = model.write(batch, self.most, any_rank_goes_on if self.in_step else rows_go_on)
        pairs = [
            (text_of(self.tokenizer, written), text_of(self.tokenizer, wanted))
            for written, wanted in zip(tokens.cpu(), right.cpu(), strict=True)
        ]
        there = (right != NO_TOKEN).any(dim=1)
        score, f1 = (
            torch.tensor([measure(*pair) for pair in pairs], dtype=torch.float32, device=right.device) * there
            for measure in (exact_match, token_f1)
        )
        return Judged(score, f1, torch.cat([tokens.to(log_probs.dtype), log_probs], dim=1))


def any_rank_goes_on(going: Tensor) -> bool:
    """A `GoesOn` with one answer for all ranks: until every row of each has ended. Where ZeRO-3 has taken a model apart, each
    layer of each token needs all of them."""
    left = going.any().to(torch.int32)
    dist.all_reduce(left, op=dist.ReduceOp.MAX)
    return bool(left)


def text_of(tokenizer: PreTrainedTokenizerFast, tokens: Tensor) -> str:
    """The text of one answer's tokens [M], without what ends it."""
    text: str = tokenizer.decode(tokens[tokens != NO_TOKEN].tolist(), skip_special_tokens=True)
    return text.strip()


def answer_encoder(backbone: Backbone, task: TaskSpec) -> AnswerEncoder | None:
    """How a task's right answers become tokens; None where it has classes. Raises ConfigError: the backbone does not write."""
    if not task.kind.generates:
        return None
    if backbone.chat is None:
        raise ConfigError(f"{task.name} has answers to write; {backbone.name} does not write.", fix="Use a decoder.")
    return AnswerEncoder(backbone.tokenizer, backbone.chat.before_answer, backbone.chat.end, task.max_new_tokens)


def asked_of(backbone: Backbone, max_text: int) -> ConversationPrompt | None:
    """How questions with answers to write stand behind those before them; None where the backbone does not write."""
    chat = backbone.chat
    return None if chat is None else ConversationPrompt(backbone.tokenizer, chat.question_end, chat.answer_end, max_text)


def judge_of(backbone: Backbone, task: TaskSpec, *, in_step: bool = False) -> Judge | None:
    """How a task's written answers are judged; None where it has classes."""
    return Judge(backbone.tokenizer, task.max_new_tokens, in_step) if task.kind.generates else None
