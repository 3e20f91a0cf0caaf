"""A tiny target and drafters in training for it, as recipes make them; recorded passes.

The target has seven layers, random weights in float64 and 61 tokens, the last of them for masks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from tests.tiny import VOCABULARY, tiny_config
from tests.training.objectives.toys import ToyModel

from anyorder.core import lookup
from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.core.method import Abilities
from anyorder.core.objective import Objective, TrainableModel
from anyorder.model.drafters.draft_vocabulary import spread
from anyorder.model.loaded import LoadedModel
from anyorder.model.transformer import Transformer
from anyorder.training.network import NetworkRecipe, Surroundings, Trainee

MASK = VOCABULARY - 1
KINDS = {"medusa": "medusa", "eagle": "eagle", "block_drafter": "dflash"}
"""Objective -> kind of network."""
OPTIONS: dict[str, dict[str, Any]] = {
    "medusa": {"heads": 3},
    "eagle": {"vocabulary": 40},
    "dflash": {"block_size": 5, "mask_token": MASK},
}


@functools.cache
def target() -> LoadedModel:
    config = tiny_config()
    network = Transformer.random(
        tiny_config(layers=config.layers[:1] * 7), seed=1, dtype=torch.float64
    )
    abilities = Abilities(
        name="target", vocabulary_size=VOCABULARY, context_length=256, num_layers=7
    )
    return LoadedModel(network=network, abilities=abilities)


def objective(name: str, **options: Any) -> Objective:
    found: Objective = lookup.find("training/objectives", name, kind="objective")(**options)
    return found


def recipe_of(name: str, **options: Any) -> NetworkRecipe:
    """Of the network that the objective `name` trains."""
    cls = lookup.find("training/networks", KINDS[name], kind="kind")
    recipe: NetworkRecipe = cls(**{**OPTIONS[KINDS[name]], **options})
    return recipe


def surroundings(name: str, **changes: Any) -> Surroundings:
    tokenizer: Any = SimpleNamespace(mask_token=None)
    fields: dict[str, Any] = {
        "tokenizer": tokenizer,
        "objective": objective(name),
        "length": 32,
        "seed": 3,
        "locate": str,
        "counts": lambda size: torch.arange(size) % 7,
        "teacher": target(),
    }
    return Surroundings(**{**fields, **changes})


def trainee(name: str, *, spread: float = 0.0, **options: Any) -> Trainee:
    """In float64, with its teacher; `spread`: random weights far from the small first ones."""
    made = recipe_of(name, **options).make(surroundings(name))
    network = made.network.double()
    if spread:
        rng = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=rng) * spread)
    teacher: Any = target().network
    host: Any = ToyModel(network=teacher, abilities=target().abilities)
    return Trainee(network=network, abilities=made.abilities, fields=made.fields, teacher=host)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorded:
    """A trainee whose batches and logits are kept."""

    model: TrainableModel
    batches: list[PackedBatch] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)

    @property
    def abilities(self) -> Abilities:
        return self.model.abilities

    @property
    def teacher(self) -> TrainableModel | None:
        return self.model.teacher

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        self.batches.append(batch)
        return self.model.hidden(batch, pool)

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        self.scores.append(self.model.logits(hidden_MW))
        return self.scores[-1]

    @property
    def scored(self) -> torch.Tensor | None:
        return self.model.scored

    def draft_logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        found = self.model.draft_logits(hidden_MW)
        self.scores.append(spread(found, self.model.scored, self.model.abilities.vocabulary_size))
        return found


def greedy(prompt: Sequence[int], count: int) -> list[int]:
    """What the target itself writes."""
    from anyorder.core.batch import dense_batch

    text = list(prompt)
    network: Any = target().network
    for _ in range(count):
        with torch.no_grad():
            hidden = network.hidden(dense_batch(torch.tensor([text])))
            text.append(int(network.logits(hidden[-1:])[0].argmax()))
    return text
