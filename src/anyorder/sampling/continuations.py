"""Prompts and what follows them: out of packed documents, and packed again to be scored.

Shape suffixes: B rows, T tokens each, M targets, R texts.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import groupby

import torch

from anyorder.core.objective import TrainableModel, TrainingBatch
from anyorder.sampling.chain_rule import predicted


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A document in two parts."""

    prompt: tuple[int, ...]
    """At least one token."""
    reference: tuple[int, ...]
    """What follows in the data; at least one token."""


def continuations(batch: TrainingBatch, *, prompt_length: int) -> list[Continuation]:
    """Each document's last run of targets, and what comes before it: the answer and all that is
    given (a prompt, a chat). Of a document that starts with targets the first `prompt_length`
    tokens are the prompt. Documents without anything to write are left out."""
    found = []
    columns = (batch.tokens_BT, batch.documents_BT, batch.targets_BT)
    for row in zip(*(column.tolist() for column in columns), strict=True):
        for number, places in groupby(zip(*row, strict=True), key=lambda place: place[1]):
            document = list(places)
            flags = [target for _, _, target in document]
            if number < 0 or not any(flags):
                continue
            tokens = tuple(token for token, _, _ in document)
            end = len(flags) - flags[::-1].index(True)
            start = max((i + 1 for i in range(end) if not flags[i]), default=prompt_length)
            if start < end:
                found.append(Continuation(prompt=tokens[:start], reference=tokens[start:end]))
    return found


def pack_texts(prompts: Seq[Seq[int]], texts: Seq[Seq[int]], device: torch.device) -> TrainingBatch:
    """One row a text, behind its prompt; the texts are the targets. None may be empty."""
    length = max(len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True))
    tokens, documents, targets = [], [], []
    for prompt, text in zip(prompts, texts, strict=True):
        size = len(prompt) + len(text)
        padding = length - size
        tokens.append([*prompt, *text] + [0] * padding)
        documents.append([0] * size + [-1] * padding)
        targets.append([False] * len(prompt) + [True] * len(text) + [False] * padding)
    return TrainingBatch(
        tokens_BT=torch.tensor(tokens, device=device),
        documents_BT=torch.tensor(documents, device=device),
        targets_BT=torch.tensor(targets, device=device),
    )


def draw_texts(
    model: TrainableModel,
    continuations: Seq[Continuation],
    *,
    num_samples: int,
    max_new_tokens: int | None,
    temperature: float,
    rng: torch.Generator,
) -> list[list[int]]:
    """`num_samples` texts behind each prompt, those of one prompt next to each other. Each is at
    most `max_new_tokens` long; None: as long as the reference."""
    limits = [
        max_new_tokens or len(each.reference) for each in continuations for _ in range(num_samples)
    ]
    longest = max(len(each.prompt) for each in continuations)
    room = model.abilities.context_length - longest
    prompts = [each.prompt for each in continuations for _ in range(num_samples)]
    drawn = model.generate(
        prompts, max_new_tokens=min(max(limits), room), temperature=temperature, rng=rng
    )
    return [text[:limit] for text, limit in zip(drawn, limits, strict=True)]


def rows_of(batch: TrainingBatch) -> torch.Tensor:
    """int64 [M]; the row of every `predicted` token."""
    return predicted(batch).nonzero()[:, 0]


def sum_rows(values_M: torch.Tensor, rows_M: torch.Tensor, num_rows: int) -> torch.Tensor:
    """[R]; the sum over each row's tokens."""
    return values_M.new_zeros(num_rows).index_add(0, rows_M, values_M)
