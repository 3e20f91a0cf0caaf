"""Each objective's exact value for one short document, by enumerating everything it draws.

Nothing here uses the objectives' code: documents are run alone, at inference's view of them (one
sequence, no second half), and expectations are sums and Gaussian quadrature.

Shape suffixes: K corrupted copies, T tokens of the document, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from tests.training.objectives import pair_forms, rollout_forms
from tests.training.objectives.toys import ToyModel

from anyorder.core import lookup
from anyorder.core.batch import dense_batch
from anyorder.core.objective import Objective
from anyorder.core.plans import span_numbers
from anyorder.training.objectives.block_diffusion import BlockDiffusion
from anyorder.training.objectives.distillation import Distillation
from anyorder.training.objectives.masked_diffusion import MaskedDiffusion
from anyorder.training.objectives.mixture import Mixture
from anyorder.training.objectives.next_token import NextToken
from anyorder.training.objectives.planned_diffusion import PlannedDiffusion
from anyorder.training.objectives.uniform_diffusion import UniformDiffusion

Document = list[int]
Targets = list[int]
"""Places of a document that are targets."""


@torch.no_grad()
def predictions(
    model: ToyModel, copies: list[Document], visible_TT: torch.Tensor, *, ban: bool
) -> torch.Tensor:
    """log-probabilities [K, T, V]; `ban`: the mask token gets none."""
    tokens_KT = torch.tensor(copies)
    hidden = model.hidden(dense_batch(tokens_KT, visible_TT[None]))
    logits = model.logits(hidden).double()
    if ban:
        assert model.abilities.mask_token is not None
        logits[:, model.abilities.mask_token] = -torch.inf
    return logits.log_softmax(-1).view(*tokens_KT.shape, -1)


def mean_over(
    function: Callable[[np.ndarray], np.ndarray], low: float, high: float, nodes: int = 64
) -> float:
    """Mean of a function over [low, high]."""
    if low == high:
        return float(function(np.array([low]))[0])
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return float((function(low + (high - low) * (points + 1) / 2) * weights / 2).sum())


def next_token(
    objective: NextToken, model: ToyModel, document: Document, targets: Targets
) -> float:
    """Every prefix alone."""
    total = 0.0
    for place in targets:
        visible = torch.ones(place, place, dtype=torch.bool).tril()
        found = predictions(model, [document[:place]], visible, ban=False)
        total -= float(found[0, -1, document[place]])
    return total


def distillation(
    objective: Distillation, model: ToyModel, document: Document, targets: Targets
) -> float:
    """Every prefix alone, to both."""
    assert isinstance(model.teacher, ToyModel)
    total = 0.0
    for place in targets:
        visible = torch.ones(place, place, dtype=torch.bool).tril()
        ours, theirs = (
            predictions(each, [document[:place]], visible, ban=False)[0, -1]
            for each in (model, model.teacher)
        )
        heat = objective.temperature
        p, q = ((table / heat).log_softmax(-1) for table in (theirs, ours))
        if objective.divergence == "reverse":
            p, q = q, p
        soft = heat**2 * float((p.exp() * (p - q)).sum())
        total += (1 - objective.text) * soft - objective.text * float(ours[document[place]])
    return total


def subsets(places: list[int]) -> list[tuple[int, ...]]:
    """All but the empty one."""
    return [s for k in range(1, len(places) + 1) for s in itertools.combinations(places, k)]


def masked_part(
    model: ToyModel,
    document: Document,
    places: list[int],
    visible_TT: torch.Tensor,
    low: float,
    high: float,
) -> float:
    """Masks drawn among `places`: the mean over levels of 1 / level times the expected cost."""
    assert model.abilities.mask_token is not None
    mask, num = model.abilities.mask_token, len(places)
    chosen = subsets(places)
    copies = [[mask if i in s else t for i, t in enumerate(document)] for s in chosen]
    found = predictions(model, copies, visible_TT, ban=True)
    total = 0.0
    for row, hidden in zip(found, chosen, strict=True):
        cost = -sum(float(row[place, document[place]]) for place in hidden)
        size = len(hidden)
        total += cost * mean_over(lambda x, k=size: x ** (k - 1) * (1 - x) ** (num - k), low, high)
    return total


def masked_diffusion(
    objective: MaskedDiffusion, model: ToyModel, document: Document, targets: Targets
) -> float:
    """All sets of masks."""
    visible = torch.ones(len(document), len(document), dtype=torch.bool)
    return masked_part(model, document, targets, visible, objective.min_noise, 1.0)


def block_diffusion(
    objective: BlockDiffusion, model: ToyModel, document: Document, targets: Targets
) -> float:
    """All sets of masks of each block, behind the clean blocks before it, as it is decoded."""
    total, size = 0.0, objective.block_size
    if objective.next_token:
        total += objective.next_token * next_token(NextToken(), model, document, targets)
    for start in range(0, len(document), size):
        end = min(start + size, len(document))
        blocks = torch.arange(end) // size
        visible = blocks[:, None] >= blocks[None, :]
        if objective.clean == "causal":
            visible[:start] = torch.ones(start, end, dtype=torch.bool).tril()
        places = [place for place in targets if start <= place < end]
        if not places:
            continue
        limits = objective.min_noise, objective.max_noise
        total += masked_part(model, document[:end], places, visible, *limits)
    return total


def uniform_diffusion(
    objective: UniformDiffusion, model: ToyModel, document: Document, targets: Targets
) -> float:
    """All corrupted texts, and the rates of the reverse process written out."""
    size = model.abilities.vocabulary_size
    low, high = objective.min_noise, 1 - objective.min_noise
    copies = []
    for values in itertools.product(range(size), repeat=len(targets)):
        copies.append(list(document))
        for place, value in zip(targets, values, strict=True):
            copies[-1][place] = value
    visible = torch.ones(len(document), len(document), dtype=torch.bool)
    found = predictions(model, copies, visible, ban=False).exp().numpy()

    def integrand(levels: np.ndarray) -> np.ndarray:
        total = np.zeros_like(levels)
        for copy, guess in zip(copies, found, strict=True):
            probability = np.ones_like(levels)
            cost = np.zeros_like(levels)
            for place in targets:
                clean, noisy = document[place], copy[place]
                p = [(1 - levels) * (y == clean) + levels / size for y in range(size)]
                q = [(1 - levels) * guess[place, y] + levels / size for y in range(size)]
                probability *= p[noisy]
                for y in range(size):
                    true, predicted = p[y] / p[noisy], q[y] / q[noisy]
                    rate = 1 / (1 - levels) / size
                    cost += rate * (predicted - true + true * np.log(true / predicted))
            total += probability * cost
        return total

    return mean_over(integrand, low, high, nodes=200)


def planned_diffusion(
    objective: PlannedDiffusion, model: ToyModel, document: Document, targets: Targets
) -> float:
    """Text token by token and all sets of masks of each span, each as it is decoded: text behind
    the clean tokens of its past, a span while all that it sees is clean."""
    tags = model.abilities.plan_tokens
    assert tags is not None
    spans = span_numbers(document, tags)
    text = [place for place, span in enumerate(spans) if span < 0]

    def sees(query: int, key: int) -> bool:
        if spans[key] < 0:
            return key <= query
        return spans[key] == spans[query] or tags.sync in document[key : query + 1]

    def visible(length: int) -> torch.Tensor:
        return torch.tensor([[sees(i, j) for j in range(length)] for i in range(length)])

    total = 0.0
    for last, place in itertools.pairwise(text):
        if place in targets:
            found = predictions(model, [document[: last + 1]], visible(last + 1), ban=False)
            total -= float(found[0, last, document[place]])
    for span in range(max(spans) + 1):
        inside = [place for place, number in enumerate(spans) if number == span]
        end = inside[-1] + 1
        learnt = [
            place
            for place in inside
            if place in targets and document[place] not in (tags.span, tags.span_end)
        ]
        if learnt:
            cost = masked_part(model, document[:end], learnt, visible(end), objective.min_noise, 1)
            total += objective.span_weight * cost
    return total


def mixture(objective: Mixture, model: ToyModel, document: Document, targets: Targets) -> float:
    """Each part's, as often as it is taken."""
    shares = objective.shares or (1.0,) * len(objective.parts)
    found = [
        closed_form(lookup.name_of(part), part, model, document, targets)
        for part in objective.parts
    ]
    return sum(s * f for s, f in zip(shares, found, strict=True)) / sum(shares)


CLOSED_FORMS: dict[str, Callable[..., float]] = {
    "next_token": next_token,
    "masked_diffusion": masked_diffusion,
    "uniform_diffusion": uniform_diffusion,
    "block_diffusion": block_diffusion,
    "planned_diffusion": planned_diffusion,
    "mixture": mixture,
    "distillation": distillation,
    "span_infill": rollout_forms.span_infill,
    "scheduled_sampling": rollout_forms.scheduled_sampling,
    "policy_gradient": rollout_forms.policy_gradient,
    "adversarial": rollout_forms.adversarial,
    "encoder_decoder": pair_forms.encoder_decoder,
    "mask_predict": pair_forms.mask_predict,
    "dag": pair_forms.dag,
    "ctc": pair_forms.ctc,
    "insertion": pair_forms.insertion,
}


def closed_form(
    name: str, objective: Objective, model: ToyModel, document: Document, targets: Targets
) -> float:
    """Exact mean of the objective's total."""
    return CLOSED_FORMS[name](objective, model, document, targets)
