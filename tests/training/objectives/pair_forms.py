"""Exact values of the objectives that learn from pairs, for one document run alone.

Shape suffixes: K masked copies, T tokens of the document, S of its source, L vertices, W width,
V vocabulary.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from tests.training.objectives.toys import ToyModel, source_of

from anyorder.core.batch import CrossMemory, dense_batch
from anyorder.training.objectives.ctc import Ctc
from anyorder.training.objectives.dag import Dag
from anyorder.training.objectives.encoder_decoder import EncoderDecoder
from anyorder.training.objectives.insertion import Insertion
from anyorder.training.objectives.mask_predict import MaskPredict

NUMBER = 1
"""The document is the second of its row."""


def states(model: ToyModel) -> torch.Tensor:
    """The encoder's output [1, S, W] for the document's source."""
    source = torch.tensor([source_of(NUMBER)])
    everything = torch.ones(1, source.shape[1], source.shape[1], dtype=torch.bool)
    return model.encode(dense_batch(source, everything))[None]


def logits(model: ToyModel, copies: list[list[int]], *, causal: bool = False) -> torch.Tensor:
    """[K, T, V] of copies of the document, each behind the source; hidden states come with them."""
    return model.logits(hidden(model, copies, causal=causal).flatten(0, 1)).view(
        len(copies), len(copies[0]), -1
    )


def hidden(model: ToyModel, copies: list[list[int]], *, causal: bool = False) -> torch.Tensor:
    """[K, T, W]"""
    tokens = torch.tensor(copies)
    length = tokens.shape[1]
    visible = torch.ones(1, length, length, dtype=torch.bool)
    memory = CrossMemory(states_RSW=states(model).expand(len(copies), -1, -1))
    packed = dense_batch(tokens, visible.tril() if causal else visible, memory=memory)
    return model.hidden(packed).view(*tokens.shape, -1)


def subsets(places: list[int], size: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(places, size))


@torch.no_grad()
def encoder_decoder(
    objective: EncoderDecoder, model: ToyModel, document: list[int], targets: list[int]
) -> float:
    """Every prefix alone."""
    total = 0.0
    for place in targets:
        found = logits(model, [document[:place]], causal=True)[0, -1:]
        wanted = torch.tensor(document[place : place + 1])
        total += float(F.cross_entropy(found, wanted, label_smoothing=objective.label_smoothing))
    return total


@torch.no_grad()
def mask_predict(
    objective: MaskPredict, model: ToyModel, document: list[int], targets: list[int]
) -> float:
    """All sets of masks."""
    mask = model.abilities.mask_token
    assert mask == model.abilities.vocabulary_size - 1

    def masked(places: tuple[int, ...]) -> torch.Tensor:
        """Logits [T, V] without the mask's, which is the last."""
        copy = [mask if i in places else t for i, t in enumerate(document)]
        return logits(model, [copy])[0, :, :-1]

    def cost(places: tuple[int, ...]) -> float:
        chosen, wanted = list(places), torch.tensor([document[i] for i in places])
        smoothing = objective.label_smoothing
        found = F.cross_entropy(
            masked(places)[chosen], wanted, reduction="sum", label_smoothing=smoothing
        )
        return float(found)

    def mean(size: int) -> float:
        chosen = subsets(targets, size)
        return sum(map(cost, chosen)) / len(chosen)

    count = len(targets)
    if objective.masking == "uniform":
        likelihood = objective.weighting == "likelihood"
        sizes = range(1, count + 1)
        total = sum(mean(n) * (count / n if likelihood else 1.0) for n in sizes) / count
        weight = count if likelihood else sum(sizes) / count
    elif objective.masking == "all":
        total, weight = cost(tuple(targets)), count
    else:
        guesses = masked(tuple(targets)).argmax(-1)
        wrong = sum(int(guesses[place]) != document[place] for place in targets)
        total, weight = mean(count - round(objective.first_ratio * wrong)), count
    if objective.length_weight:
        lengths = model.length_logits(states(model)[:, 0])
        nats = float(F.cross_entropy(lengths, torch.tensor([count])))
        total += objective.length_weight * weight * nats
    return total


@torch.no_grad()
def dag(objective: Dag, model: ToyModel, document: list[int], targets: list[int]) -> float:
    """All paths, and with glancing all that may be shown of the best one."""
    mask = model.abilities.mask_token
    assert mask == model.abilities.vocabulary_size - 1
    num_vertices = model.abilities.vertices_per_token * (len(source_of(NUMBER)) + 2)
    text = [document[place] for place in targets]
    paths = [
        (*middle, num_vertices - 1)
        for middle in itertools.combinations(range(1, num_vertices - 1), len(text) - 1)
    ]

    def scores(shown: dict[int, int]) -> tuple[list[float], torch.Tensor]:
        """Log-probability along every path, and that of each token at each vertex."""
        inputs = [document[0]] + [shown.get(vertex, mask) for vertex in range(1, num_vertices)]
        hidden_1LW = hidden(model, [inputs])
        emissions = model.logits(hidden_1LW[0])[:, :-1].log_softmax(-1)
        links = model.links(hidden_1LW, torch.tensor([num_vertices]))[0].double()
        free = emissions.clone()
        for vertex, token in shown.items():
            free[vertex] = -torch.inf
            free[vertex, token] = 0.0
        table, steps = free.tolist(), links.tolist()
        return [
            sum(
                steps[before][here] + table[here][token]
                for (before, here), token in zip(itertools.pairwise((0, *path)), text, strict=True)
            )
            for path in paths
        ], emissions

    def cost(found: list[float]) -> float:
        return -math.log(sum(map(math.exp, found)))

    plain, emissions = scores({})
    if not objective.glancing:
        return cost(plain)
    best = paths[max(range(len(paths)), key=lambda index: plain[index])]
    wrong = sum(
        int(emissions[vertex].argmax()) != token for vertex, token in zip(best, text, strict=True)
    )
    steps = list(zip(best, text, strict=True))
    shown = list(itertools.combinations(steps, round(objective.first_ratio * wrong)))
    return sum(cost(scores(dict(pairs))[0]) for pairs in shown) / len(shown)


@torch.no_grad()
def ctc(objective: Ctc, model: ToyModel, document: list[int], targets: list[int]) -> float:
    """All sequences of tokens and blanks, by what becomes of them."""
    blank = model.abilities.mask_token
    assert blank is not None
    num_places = model.abilities.vertices_per_token * (len(source_of(NUMBER)) + 2)
    found = logits(model, [[document[0]] + [blank] * (num_places - 1)])[0, 1:]
    table = found.log_softmax(-1).tolist()
    text = [document[place] for place in targets]
    total = 0.0
    for sequence in itertools.product(range(blank + 1), repeat=num_places - 1):
        if [token for token, _ in itertools.groupby(sequence) if token != blank] == text:
            total += math.exp(sum(table[place][token] for place, token in enumerate(sequence)))
    return -math.log(total)


def most_that_can_stay(text: list[int], goal: list[int]) -> tuple[int, ...]:
    """Places of as many tokens as can stay, the later ones as early as can be; by trying all."""
    for size in range(len(text), -1, -1):
        fitting = []
        for places in itertools.combinations(range(len(text)), size):
            rest = iter(goal)
            if all(text[place] in rest for place in places):
                fitting.append(places)
        if fitting:
            return min(fitting, key=lambda places: places[::-1])
    raise AssertionError("the empty set fits")


@torch.no_grad()
def insertion(
    objective: Insertion, model: ToyModel, document: list[int], targets: list[int]
) -> float:
    """All sets of tokens that may be taken out; all targets lie behind the first token."""
    mask = model.abilities.mask_token
    assert mask == model.abilities.vocabulary_size - 1
    most = model.abilities.num_insertions - 1

    def cost(out: tuple[int, ...]) -> float:
        total = 0.0
        left = [place for place in range(len(document)) if place not in out]
        ahead = [*left[1:], len(document)]
        states = hidden(model, [[document[place] for place in left]])[0]
        found, _ = model.edits(states, F.pad(states[1:], (0, 0, 0, 1)))
        for row, (here, after) in enumerate(zip(left, ahead, strict=True)):
            total -= float(found[row].log_softmax(-1)[min(after - here - 1, most)])
        guessed = list(document)
        if out:
            copy = [mask if place in out else token for place, token in enumerate(document)]
            table = logits(model, [copy])[0, list(out), :-1]
            wanted = torch.tensor([document[place] for place in out])
            smoothing = objective.label_smoothing
            total += float(
                F.cross_entropy(table, wanted, reduction="sum", label_smoothing=smoothing)
            )
            for place, guess in zip(out, table.argmax(-1).tolist(), strict=True):
                guessed[place] = guess
        stays = most_that_can_stay(guessed[1:], document[1:])
        states = hidden(model, [guessed])[0, 1:]
        _, wrong = model.edits(states, states)
        for place, score in enumerate(wrong):
            total -= float(F.logsigmoid(-score if place in stays else score))
        return total

    assert targets == list(range(1, len(document)))
    sizes = range(len(targets) + 1)
    return sum(
        sum(map(cost, chosen)) / len(chosen) for chosen in (subsets(targets, n) for n in sizes)
    ) / len(sizes)
