"""Prompts and what follows them: out of packed documents, and packed again to be scored.

Shape suffixes: B rows, T tokens each, M targets, R texts.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import groupby

import torch

from anyorder.core.objective import TrainableModel, TrainingBatch
from anyorder.sampling.chain_rule import chain_rule_nats, predicted


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A document in two parts."""

    prompt: tuple[int, ...]
    """At least one token."""
    reference: tuple[int, ...]
    """What follows in the data; at least one token."""
    targets: tuple[bool, ...]
    """Of prompt and reference: may the token be learnt? Of the prompt only some may, or none."""


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
                found.append(
                    Continuation(
                        prompt=tokens[:start],
                        reference=tokens[start:end],
                        targets=tuple(flags[:end]),
                    )
                )
    return found


def pack_texts(prompts: Seq[Seq[int]], texts: Seq[Seq[int]], device: torch.device) -> TrainingBatch:
    """One row a text, behind its prompt; the texts are the targets. None may be empty."""
    pairs = list(zip(prompts, texts, strict=True))
    flags = [[False] * len(prompt) + [True] * len(text) for prompt, text in pairs]
    return _pack([[*prompt, *text] for prompt, text in pairs], flags, device)


def pack_documents(documents: Seq[Continuation], device: torch.device) -> TrainingBatch:
    """One row a document as the data have it, with all its targets."""
    tokens = [[*each.prompt, *each.reference] for each in documents]
    return _pack(tokens, [each.targets for each in documents], device)


def _pack(rows: Seq[Seq[int]], targets: Seq[Seq[bool]], device: torch.device) -> TrainingBatch:
    length = max(map(len, rows))
    return TrainingBatch(
        tokens_BT=torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=device),
        documents_BT=torch.tensor(
            [[0] * len(row) + [-1] * (length - len(row)) for row in rows], device=device
        ),
        targets_BT=torch.tensor(
            [[*row, *[False] * (length - len(row))] for row in targets], device=device
        ),
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


def mean_nats(model: TrainableModel, documents: TrainingBatch) -> torch.Tensor:
    """[R]; each row's mean cross-entropy of its `predicted` tokens, of which it has some."""
    nats_M, rows_M = chain_rule_nats(model, documents), rows_of(documents)
    counts_R = sum_rows(torch.ones_like(nats_M), rows_M, len(documents.tokens_BT))
    return sum_rows(nats_M, rows_M, len(counts_R)) / counts_R


def sum_rows(values_M: torch.Tensor, rows_M: torch.Tensor, num_rows: int) -> torch.Tensor:
    """[R]; the sum over each row's tokens."""
    return values_M.new_zeros(num_rows).index_add(0, rows_M, values_M)
