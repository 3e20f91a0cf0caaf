"""Mixture: one network learns in several ways at once, and can then do all of them.

Every sequence of a batch is learnt in one of the ways, by their shares: left to right, in blocks,
as a canvas, with plans, ... (UL2, arXiv 2205.05131, mixes kinds of noise like this). A batch is
shared out as evenly as its size allows, and who gets the rows that are left over is drawn, so the
mean is that of the parts, weighted by shares, whatever the size.

Sequences with plans in them are for the parts that know plans, if there are any: to others tags
would be words, which come in another order there than where plans are carried out. All others are
for all parts. What the parts need of network and tokenizer is needed of each of them; what they
make of a network is joined, and refused where they contradict each other (blocks of different
sizes).

The metric `nats` is over all; each part's own, over its own tokens, is named after it.

Shape suffixes: B sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Annotated

import torch

from anyorder.core import lookup
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Part
from anyorder.core.plans import TAGS


@dataclass(frozen=True, kw_only=True)
class Mixture(Objective):
    """Learn in several ways, each sequence in one of them."""

    parts: Annotated[
        tuple[Objective, ...], Part("training/objectives", several=True), "the ways to learn"
    ]
    shares: Annotated[
        tuple[float, ...], "of the sequences without plans, for each part; none: equal ones"
    ] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.parts) < 2:
            raise UserError(
                f"a mixture needs at least 2 parts, got {len(self.parts)}; name the objective "
                "itself where there is only one."
            )
        if self.shares and len(self.shares) != len(self.parts):
            raise UserError(
                f"shares has {len(self.shares)} numbers for {len(self.parts)} parts; give one for "
                "each, or none."
            )
        if any(not 0 <= share < math.inf for share in self.shares) or not any(self.shares or (1,)):
            raise UserError(
                f"shares must be numbers of at least 0, not all of them 0, got {list(self.shares)}."
            )

    @property
    def needs_mask_token(self) -> bool:  # type: ignore[override]
        """If a part does."""
        return any(part.needs_mask_token for part in self.parts)

    @property
    def needs_sources(self) -> bool:  # type: ignore[override]
        """If a part does; the others then refuse the network."""
        return any(part.needs_sources for part in self.parts)

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]
        """If a part does."""
        return any(part.needs_teacher for part in self.parts)

    @property
    def draws_texts(self) -> bool:  # type: ignore[override]
        """If a part does."""
        return any(part.draws_texts for part in self.parts)

    @property
    def control_tokens(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of all parts."""
        found = (token for part in self.parts for token in part.control_tokens)
        return tuple(dict.fromkeys(found))

    def check(self, abilities: Abilities) -> None:
        """Every part must be able to learn, and what they make of the network to go together."""
        for part in self.parts:
            part.check(abilities)
        self.trained(abilities)

    def companion(self, abilities: Abilities) -> torch.nn.Module | None:
        """That of the one part that has one."""
        found = [part.companion(abilities) for part in self.parts]
        modules = [module for module in found if module is not None]
        if len(modules) > 1:
            raise UserError(
                "two parts of the mixture train a network of their own beside the model's; leave "
                "one of them out."
            )
        return modules[0] if modules else None

    def trained(self, abilities: Abilities) -> Abilities:
        """All that the parts make of it."""
        each = [part.trained(abilities) for part in self.parts]
        joined = replace(
            abilities,
            attention=frozenset().union(*(found.attention for found in each)),
            mask_token=abilities.mask_token if self.needs_mask_token else None,
        )
        for name in (field.name for field in fields(Abilities)):
            old = getattr(abilities, name)
            values = [getattr(found, name) for found in each]
            new = [value for value in values if value != old]
            if name in ("attention", "mask_token") or not new:
                continue
            if any(value != new[0] for value in new):
                raise UserError(
                    f"the mixture's parts make different {name.replace('_', ' ')} of the model: "
                    f"{', '.join(map(str, dict.fromkeys(new)))}; give them the same."
                )
            joined = replace(joined, **{name: new[0]})
        return joined

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """The sum of the parts' losses, each over its own sequences."""
        parts_B = self._parts(batch, model.abilities, rng)
        losses: list[tuple[str, Loss]] = []
        for number, part in enumerate(self.parts):
            rows = (parts_B == number).nonzero()[:, 0]
            if len(rows):
                found = part.loss(model, _rows(batch, rows), rng)
                losses.append((lookup.name_of(part), found))
        weight = sum(found.weight for _, found in losses)
        metrics: dict[str, float] = {"nats": 0.0}
        for name, found in losses:
            nats = found.metrics.get("nats", 0.0)
            metrics["nats"] += nats
            # Logged as sums over all that the batch weighs, and meant over the part's own.
            if found.weight:
                metrics[name] = metrics.get(name, 0.0) + nats * weight / found.weight
        total = torch.stack([found.total for _, found in losses]).sum()
        return Loss(total=total, weight=weight, metrics=metrics)

    def _parts(
        self, batch: TrainingBatch, abilities: Abilities, rng: torch.Generator
    ) -> torch.Tensor:
        """int64 [B]; which part each sequence is for."""
        shares = torch.tensor(self.shares or [1.0] * len(self.parts), dtype=torch.float64)
        knows = torch.tensor([set(TAGS) <= set(part.control_tokens) for part in self.parts])
        planned_B = torch.zeros(len(batch.tokens_BT), dtype=torch.bool)
        if abilities.plan_tokens is not None and knows.any():
            tags = torch.tensor(abilities.plan_tokens.tags, device=batch.tokens_BT.device)
            planned_B = torch.isin(batch.tokens_BT, tags).any(dim=1).cpu()
        parts_B = torch.empty(len(planned_B), dtype=torch.int64)
        planners = shares * knows if (shares * knows).any() else knows.double()
        for rows_B, own in ((planned_B, planners), (~planned_B, shares)):
            count = int(rows_B.sum())
            # Evenly spaced, with one draw for where they begin, in random order.
            levels = (torch.arange(count) + torch.rand((), generator=rng)) / max(count, 1)
            bounds = (own / own.sum()).cumsum(0)[:-1]
            found = torch.searchsorted(bounds, levels.double(), right=True)
            parts_B[rows_B] = found[torch.randperm(count, generator=rng)]
        return parts_B


def _rows(batch: TrainingBatch, rows: torch.Tensor) -> TrainingBatch:
    rows = rows.to(batch.tokens_BT.device)
    sources, documents = batch.sources_BS, batch.source_documents_BS
    return replace(
        batch,
        tokens_BT=batch.tokens_BT[rows],
        documents_BT=batch.documents_BT[rows],
        targets_BT=batch.targets_BT[rows],
        sources_BS=None if sources is None else sources[rows],
        source_documents_BS=None if documents is None else documents[rows],
    )
