"""Exact values of the objectives that rearrange texts, replace their tokens or write their own.

For one document run alone, by enumeration of everything that is drawn.
"""

from __future__ import annotations

import itertools
import math

import torch
from tests.training.objectives.toys import ToyModel

from anyorder.core.batch import dense_batch
from anyorder.training.objectives.adversarial import Adversarial
from anyorder.training.objectives.policy_gradient import PolicyGradient
from anyorder.training.objectives.scheduled_sampling import ScheduledSampling
from anyorder.training.objectives.span_infill import SpanInfill

Tokens = list[int]


@torch.no_grad()
def logits_of(model: ToyModel, tokens: Tokens) -> torch.Tensor:
    """[T, V] of one document, causal."""
    return model.logits(model.hidden(dense_batch(torch.tensor([tokens])))).double()


def nats(model: ToyModel, inputs: Tokens, places: Tokens, text: Tokens | None = None) -> float:
    """What the tokens at some places of a text cost behind these inputs."""
    logp = logits_of(model, inputs).log_softmax(-1)
    return -sum(float(logp[place - 1, (text or inputs)[place]]) for place in places)


def span_infill(objective: SpanInfill, model: ToyModel, document: Tokens, targets: Tokens) -> float:
    """Both orders and all pairs of cuts."""
    assert model.abilities.infill_tokens is not None and not model.abilities.end_tokens
    pre, suf, mid = ((token, None) for token in model.abilities.infill_tokens)
    text = [(token, place) for place, token in enumerate(document)]
    costs = []
    for cuts in itertools.product(range(len(text) + 1), repeat=2):
        first, second = min(cuts), max(cuts)
        prefix, middle, suffix = text[:first], text[first:second], text[second:]
        psm = [pre, *prefix, suf, *suffix, mid, *middle]
        spm = [pre, suf, *suffix, mid, *prefix, *middle]
        for arranged, share in ((psm, 1 - objective.suffix_first), (spm, objective.suffix_first)):
            asked = [place for place, (_, origin) in enumerate(arranged) if origin in targets]
            costs.append(share * nats(model, [token for token, _ in arranged], asked))
    plain = nats(model, document, targets)
    mean = sum(costs) / (len(text) + 1) ** 2
    return (1 - objective.rate) * plain + objective.rate * mean


def scheduled_sampling(
    objective: ScheduledSampling, model: ToyModel, document: Tokens, targets: Tokens
) -> float:
    """All sets of replaced tokens, and all that they may be replaced by."""
    total, share = 0.0, objective.start
    logits = logits_of(model, document)
    for replaced in itertools.product((False, True), repeat=len(targets)):
        chosen = [place for place, flag in zip(targets, replaced, strict=True) if flag]
        weight = share ** len(chosen) * (1 - share) ** (len(targets) - len(chosen))
        if objective.prediction == "argmax":
            choices = [[int(logits[place - 1].argmax()) for place in chosen]]
        else:
            choices = [list(c) for c in itertools.product(range(2), repeat=len(chosen))]
        for tokens in choices:
            inputs, probability = list(document), 1.0
            for place, token in zip(chosen, tokens, strict=True):
                inputs[place] = token
                if objective.prediction == "sampled":
                    drawn = (logits[place - 1] / objective.temperature).softmax(-1)
                    probability *= float(drawn[token])
            total += weight * probability * nats(model, inputs, targets, document)
    return total


def all_texts(
    model: ToyModel, prompt: Tokens, length: int, temperature: float = 1.0
) -> dict[tuple[int, ...], float]:
    """The probability of every text of two symbols."""
    found = {}
    for text in itertools.product(range(2), repeat=length):
        logp = (logits_of(model, [*prompt, *text]) / temperature).log_softmax(-1)
        start = len(prompt) - 1
        found[text] = math.exp(sum(float(logp[start + i, t]) for i, t in enumerate(text)))
    return found


def policy_gradient(
    objective: PolicyGradient, model: ToyModel, document: Tokens, targets: Tokens
) -> float:
    """1 less the expected share of right tokens, over all texts, and the reference's cost."""
    first, size = targets[0], len(targets)
    texts = all_texts(model, document[:first], size, objective.temperature)
    reference = document[first:]
    risk = 1.0
    for text, probability in texts.items():
        right = sum(ours == theirs for ours, theirs in zip(text, reference, strict=True))
        risk -= probability * right / size
    return risk + objective.likelihood * nats(model, document, targets) / size


def adversarial(
    objective: Adversarial, model: ToyModel, document: Tokens, targets: Tokens
) -> float:
    """The players' losses have no part in the value."""
    return nats(model, document, targets) / len(targets)
