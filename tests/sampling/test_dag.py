"""Sums and maxima over paths against all paths written out, gradients against numerical ones."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from anyorder.sampling.dag import best_paths, log_likelihood

NUM_TOKENS, NUM_VERTICES = [3, 1, 4], [6, 2, 7]


def tables(*, closed: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Links that add up to 1 over the vertices behind, and emissions, of three graphs in one
    padding; `closed`: some links are not there."""
    rng = torch.Generator().manual_seed(0)
    size, length = max(NUM_VERTICES), max(NUM_TOKENS)
    scores = torch.randn(3, size, size, generator=rng) * 2
    behind = torch.ones(size, size, dtype=torch.bool).triu(1)
    if closed:
        behind = behind & (torch.rand(size, size, generator=rng) < 0.6)
        behind |= torch.eye(size, dtype=torch.bool).roll(1, dims=1).triu(1)
    links = torch.full_like(scores, -torch.inf)
    for graph, count in enumerate(NUM_VERTICES):
        for vertex in range(count - 1):
            there = behind[vertex] & (torch.arange(size) < count)
            links[graph, vertex, there] = scores[graph, vertex, there].log_softmax(0)
    return links, torch.randn(3, length, size, generator=rng) - 2


def paths(graph: int, links: torch.Tensor, emissions: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Log-probability of the graph's text along every path from its first to its last vertex."""
    num_tokens, last = NUM_TOKENS[graph], NUM_VERTICES[graph] - 1
    found = {}
    for middle in itertools.combinations(range(1, last), num_tokens - 1):
        path = (*middle, last)
        score = 0.0
        for place, (before, here) in enumerate(itertools.pairwise((0, *path))):
            score += float(links[graph, before, here]) + float(emissions[graph, place, here])
        found[path] = score
    return found


def sizes() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(NUM_TOKENS), torch.tensor(NUM_VERTICES)


@pytest.mark.parametrize("closed", [False, True])
def test_the_sum_is_that_of_all_paths(closed: bool) -> None:
    links, emissions = tables(closed=closed)
    found = log_likelihood(links, emissions, *sizes())
    for graph in range(3):
        all_paths = paths(graph, links, emissions)
        assert len(all_paths) == math.comb(NUM_VERTICES[graph] - 2, NUM_TOKENS[graph] - 1)
        expected = math.log(sum(map(math.exp, all_paths.values())))
        assert float(found[graph]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("closed", [False, True])
def test_the_best_path_is_the_best_of_all(closed: bool) -> None:
    links, emissions = tables(closed=closed)
    found = best_paths(links, emissions, *sizes()).tolist()
    for graph, num_tokens in enumerate(NUM_TOKENS):
        all_paths = paths(graph, links, emissions)
        best = max(all_paths, key=lambda path: all_paths[path])
        assert found[graph] == [*best] + [-1] * (max(NUM_TOKENS) - num_tokens)


def test_gradients_are_the_shares_of_paths() -> None:
    """Of a link or an emission: the probability that the text's path uses it."""
    links, emissions = tables()
    links.requires_grad_(True)
    emissions.requires_grad_(True)
    weights = torch.tensor([1.0, -2.0, 0.5])
    (log_likelihood(links, emissions, *sizes()) * weights).sum().backward()
    expected_links, expected_emissions = torch.zeros_like(links), torch.zeros_like(emissions)
    for graph in range(3):
        all_paths = paths(graph, links.detach(), emissions.detach())
        whole = sum(map(math.exp, all_paths.values()))
        for path, score in all_paths.items():
            share = math.exp(score) / whole * float(weights[graph])
            for place, (before, here) in enumerate(itertools.pairwise((0, *path))):
                expected_links[graph, before, here] += share
                expected_emissions[graph, place, here] += share
    torch.testing.assert_close(links.grad, expected_links)
    torch.testing.assert_close(emissions.grad, expected_emissions)


def test_no_path_has_no_probability_and_no_gradient() -> None:
    links, emissions = tables()
    links[2, :, NUM_VERTICES[2] - 1] = -torch.inf
    links.requires_grad_(True)
    found = log_likelihood(links, emissions, *sizes())
    assert found.isneginf().tolist() == [False, False, True]
    found[:2].sum().backward()
    assert links.grad is not None and links.grad.isfinite().all()
    assert not links.grad[2].any() and links.grad[0].any()


def test_all_texts_of_a_graph_add_up_to_one() -> None:
    """Over every length and every text of two symbols, when each vertex emits one of them."""
    links, _ = tables()
    chances = torch.rand(6, generator=torch.Generator().manual_seed(1))
    total = 0.0
    for length in range(1, 6):
        for text in itertools.product((0, 1), repeat=length):
            emissions = torch.stack([(chances if s else 1 - chances).log() for s in text])
            found = log_likelihood(
                links[:1, :6, :6], emissions[None], torch.tensor([length]), torch.tensor([6])
            )
            total += float(found.exp())
    assert total == pytest.approx(1.0, abs=1e-5)


def test_probabilities_far_below_what_float32_holds() -> None:
    size = 200
    links = torch.full((1, size, size), -torch.inf)
    links[0].diagonal(1).fill_(-3.0)
    emissions = torch.full((1, size - 1, size), -20.0, requires_grad=True)
    found = log_likelihood(links, emissions, torch.tensor([size - 1]), torch.tensor([size]))
    assert float(found.detach()) == pytest.approx(-23.0 * (size - 1))
    found.sum().backward()
    assert float(emissions.grad.sum()) == pytest.approx(size - 1)  # type: ignore[union-attr]


def test_the_likeliest_path_may_begin_where_hardly_any_does() -> None:
    """Beside e^0 the beginning e^-800 is nothing, even in float64; but that one leads on, and the
    other hardly does."""
    links = torch.full((1, 6, 6), -torch.inf)
    for before, here in ((0, 1), (1, 3), (3, 5), (0, 2)):
        links[0, before, here] = 0.0
    links[0, 2, 4] = links[0, 4, 5] = -450.0
    emissions = torch.zeros(1, 3, 6)
    emissions[0, 0, 1] = -800.0
    links.requires_grad_(True)
    found = log_likelihood(links, emissions, torch.tensor([3]), torch.tensor([6]))
    assert float(found.detach()) == pytest.approx(-800.0)
    found.sum().backward()
    assert links.grad is not None
    assert links.grad.round().nonzero().tolist() == [[0, 0, 1], [0, 1, 3], [0, 3, 5]]


def test_each_token_is_emitted_once_to_the_last_digit() -> None:
    generator = torch.Generator().manual_seed(0)
    num_tokens, size = 40, 80
    behind = torch.ones(size, size, dtype=torch.bool).triu(1)
    links = torch.randn(1, size, size, generator=generator).masked_fill(~behind, -torch.inf)
    links = links.log_softmax(2).masked_fill(~behind, -torch.inf)
    emissions = torch.randn(1, num_tokens, size, generator=generator) - 5
    emissions.requires_grad_(True)
    given = torch.tensor([num_tokens]), torch.tensor([size])
    log_likelihood(links, emissions, *given).sum().backward()
    assert emissions.grad is not None
    assert (emissions.grad.double().sum(2) - 1).abs().max() < 1e-6
