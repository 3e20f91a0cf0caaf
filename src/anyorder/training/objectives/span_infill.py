"""Span infill: learn to fill in a text's middle, by moving it behind what follows.

Fill-in-the-middle (Bavarian et al., arXiv 2207.14255). A document is cut at two places into prefix,
middle and suffix, and with control tokens becomes one of

    PRE prefix SUF suffix MID middle END         (prefix-suffix-middle)
    PRE SUF suffix MID prefix middle END         (suffix-prefix-middle)

which is then learnt like any text, left to right; the other documents stay as they are. Documents
are cut where they lie in the packed sequence ("context level"), so that a middle's prefix and
suffix are always with it. All three parts are learnt, as in the paper; the control tokens are only
given, but END (the tokenizer's own end of a text), which says that the suffix has been reached.

Cuts fall between tokens, not inside them as the paper recommends for code that is completed in
mid-word. There is one middle a document: several spans behind sentinels (T5, UL2) are not here.

Shape suffixes: B rows, T tokens each (more than the batch has, by the control tokens).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.sampling.chain_rule import chain_rule_nats, predicted

_NAMES = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")

Flagged = list[tuple[int, bool]]
"""Tokens, and for each whether it may be learnt."""


@dataclass(frozen=True, kw_only=True)
class SpanInfill(Objective):
    """Predict a text's middle from what is before and behind it, and text left to right."""

    control_tokens: ClassVar[tuple[str, ...]] = _NAMES

    rate: Annotated[float, Range(0.0, 1.0), "share of the documents that are cut"] = 0.5
    suffix_first: Annotated[
        float, Range(0.0, 1.0), "share of these whose suffix comes before the prefix"
    ] = 0.5

    def check(self, abilities: Abilities) -> None:
        """It needs the three control tokens."""
        super().check(abilities)
        if abilities.infill_tokens is None:
            raise UserError(
                f"span_infill needs the control tokens {', '.join(_NAMES)}; the tokenizer of "
                f"{abilities.name} has none such. Give [data] vocabulary, which trains one that "
                "has, or add_tokens = true, which adds them, or use a model made for infilling."
            )

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Over weight, nats per token that next_token would ask for too. A middle's END, and a
        document's first token where it is in the middle, are learnt on top of these."""
        rows = []
        for tokens, documents, targets in zip(
            batch.tokens_BT.tolist(),
            batch.documents_BT.tolist(),
            batch.targets_BT.tolist(),
            strict=True,
        ):
            row = []
            for number in sorted(set(documents) - {-1}):
                places = [place for place, other in enumerate(documents) if other == number]
                document = [(tokens[place], targets[place]) for place in places]
                row.append(self._arrange(document, model.abilities, rng))
            rows.append(row)
        arranged = _packed(rows, batch.tokens_BT.device)
        total = chain_rule_nats(model, arranged).sum()
        weight = float(predicted(batch).sum())
        return Loss(total=total, weight=weight, metrics={"nats": float(total.detach())})

    def _arrange(self, document: Flagged, abilities: Abilities, rng: torch.Generator) -> Flagged:
        cut, order = torch.rand(2, generator=rng).tolist()
        if cut >= self.rate:
            return document
        assert abilities.infill_tokens is not None, "check() refuses tokenizers without them"
        pre, suf, mid = (((token, False),) for token in abilities.infill_tokens)
        end: Flagged = []
        if document[-1][0] in abilities.end_tokens:
            end, document = document[-1:], document[:-1]
        elif abilities.end_tokens:  # the document goes on in another row, but its middle ends here
            end = [(min(abilities.end_tokens), document[-1][1])]
        document = document[: abilities.context_length - len(end) - len(abilities.infill_tokens)]
        places = torch.randint(len(document) + 1, (2,), generator=rng).tolist()
        first, second = sorted(places)
        prefix, middle, suffix = document[:first], document[first:second], document[second:]
        if order < self.suffix_first:
            return [*pre, *suf, *suffix, *mid, *prefix, *middle, *end]
        return [*pre, *prefix, *suf, *suffix, *mid, *middle, *end]


def _packed(rows: Seq[Seq[Flagged]], device: torch.device) -> TrainingBatch:
    """Rows of documents, padded to the longest."""
    length = max([1, *(sum(map(len, row)) for row in rows)])
    tokens_BT = torch.zeros(len(rows), length, dtype=torch.int64)
    documents_BT = torch.full((len(rows), length), -1)
    targets_BT = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        flat = [pair for document in row for pair in document]
        if flat:
            tokens, targets = zip(*flat, strict=True)
            tokens_BT[index, : len(flat)] = torch.tensor(tokens)
            targets_BT[index, : len(flat)] = torch.tensor(targets)
            numbers = [number for number, document in enumerate(row) for _ in document]
            documents_BT[index, : len(flat)] = torch.tensor(numbers)
    return TrainingBatch(
        tokens_BT=tokens_BT.to(device),
        documents_BT=documents_BT.to(device),
        targets_BT=targets_BT.to(device),
    )
