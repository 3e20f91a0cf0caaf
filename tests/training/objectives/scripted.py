"""A model whose texts are given, so that expectations over texts can be sums."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from tests.training.objectives.rollout_forms import all_texts
from tests.training.objectives.toys import ToyModel, equip, pack, tiniest_model

from anyorder.core.batch import dense_batch
from anyorder.core.objective import Loss, Objective

PROMPT, REFERENCE = [1], [0, 1]
BATCH = pack([[*PROMPT, *REFERENCE]], given=[(0, 0)])
TEXTS = [list(text) for text in itertools.product(range(2), repeat=2)]
Gradients = list[torch.Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scripted(ToyModel):
    """Says what it is told to, one list of texts a call."""

    script: list[list[list[int]]] = field(default_factory=list)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        rng: torch.Generator,
        top_p: float = 1.0,
    ) -> list[list[int]]:
        texts = self.script.pop(0)
        assert len(texts) == len(prompts)
        return texts


def scripted(objective: Objective, *calls: list[list[int]], teacher: bool = False) -> Scripted:
    """A model of two symbols that writes these texts."""
    model = equip(tiniest_model(2, mask=False), objective)
    other = tiniest_model(2, mask=False)
    with torch.no_grad():
        for number, parameter in enumerate(other.network.parameters()):
            parameter.mul_(0.8 + 0.1 * (number % 3))
    other.network.requires_grad_(False)
    return Scripted(
        network=model.network,
        abilities=model.abilities,
        companion=model.companion,
        teacher=other if teacher else None,
        script=list(calls),
    )


def run(objective: Objective, model: Scripted) -> tuple[Loss, Gradients]:
    """The loss and the network's gradients."""
    found = objective.loss(model, BATCH, torch.Generator().manual_seed(0))
    parameters = list(model.network.parameters())
    return found, list(torch.autograd.grad(found.total, parameters, retain_graph=True))


def groups(
    model: ToyModel, count: int, temperature: float = 1.0
) -> Iterator[tuple[list[list[int]], float]]:
    """All groups of texts that can be drawn behind the prompt, and how likely each is."""
    chances = all_texts(model, PROMPT, 2, temperature)
    for texts in itertools.product(chances, repeat=count):
        chance = 1.0
        for text in texts:
            chance *= chances[text]
        yield [list(text) for text in texts], chance


def expected_gradients(
    objective: Objective, count: int, *, temperature: float = 1.0, teacher: bool = False
) -> Gradients:
    """The mean of the loss's gradients over all groups of `count` texts."""
    total: Gradients = []
    for texts, chance in groups(scripted(objective), count, temperature):
        _, found = run(objective, scripted(objective, texts, teacher=teacher))
        total = total or [torch.zeros_like(gradient) for gradient in found]
        total = [have + chance * new for have, new in zip(total, found, strict=True)]
    return total


def logp(model: ToyModel, text: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probability of each token of a text behind the prompt, with gradients."""
    tokens = torch.tensor([[*PROMPT, *text]])
    logits = model.logits(model.hidden(dense_batch(tokens))) / temperature
    start = len(PROMPT) - 1
    rows = logits.log_softmax(-1)[start : start + len(text)]
    return rows.gather(1, torch.tensor(text)[:, None])[:, 0]


def right(text: Sequence[int]) -> float:
    """The reward `tokens`."""
    return sum(a == b for a, b in zip(text, REFERENCE, strict=True)) / 2


def without(objective: Objective) -> Objective:
    """The objective without the reference's cross-entropy."""
    return replace(objective, likelihood=0.0)  # type: ignore[call-arg]
