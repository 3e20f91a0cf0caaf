"""Sums and maxima over all paths through a graph of vertices that emit tokens.

DA-Transformer (arXiv 2205.07459): a decoder lays out more vertices than the text has tokens, in
order; each has a distribution over tokens and one over the vertices behind it. A path starts at the
first vertex, where the text's start is given, emits one token at each further vertex it visits,
and ends at the last one. A text's probability is the sum over all its paths, by the forward
algorithm; its gradient comes from the backward algorithm, so that no step's [L, L] table is kept.

Not done: tables limited to the nearest vertices, beam search.

Shape suffixes: D graphs (one a document), K tokens of a text after its start, L vertices.
"""

from __future__ import annotations

from typing import Any

import torch


def log_likelihood(
    links_DLL: torch.Tensor,
    emissions_DKL: torch.Tensor,
    num_tokens_D: torch.Tensor,
    num_vertices_D: torch.Tensor,
) -> torch.Tensor:
    """float32 [D]; log of the sum of the probabilities of all paths, -inf where there is none.

    `links_DLL`: log-probability of going from one vertex to another, -inf where not possible.
    `emissions_DKL`: log-probability of each token of the text at each vertex; finite. What lies
    beyond a text's tokens or a graph's vertices is not looked at.
    """
    result: torch.Tensor = _LogLikelihood.apply(  # type: ignore[no-untyped-call]
        links_DLL.float(), emissions_DKL.float(), num_tokens_D, num_vertices_D
    )
    return result


_LOWEST = -600.0
"""Where no text's log-probability is below, sums over links are products of matrices: what float64
loses of prefixes, scaled to at most 1, is below e^-700 of them, and so of no path that counts."""


class _LogLikelihood(torch.autograd.Function):
    """Forward and backward algorithm."""

    @staticmethod
    def forward(
        ctx: Any,
        links_DLL: torch.Tensor,
        emissions_DKL: torch.Tensor,
        num_tokens_D: torch.Tensor,
        num_vertices_D: torch.Tensor,
    ) -> torch.Tensor:
        graphs_D = torch.arange(len(links_DLL), device=links_DLL.device)
        for step in (_Products(links_DLL), _LogSums(links_DLL)):
            forwards = _forwards(step, emissions_DKL)
            totals_D = forwards[num_tokens_D, graphs_D, num_vertices_D - 1]
            if bool((totals_D > _LOWEST).all()):
                break
        ctx.step = step
        ctx.save_for_backward(emissions_DKL, num_tokens_D, num_vertices_D, forwards, totals_D)
        return totals_D.float()

    @staticmethod
    def backward(ctx: Any, gradient_D: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        emissions_DKL, num_tokens_D, num_vertices_D, forwards, totals_D = ctx.saved_tensors
        # Where there is no path there is no gradient: exp(-inf) throughout.
        totals_D1 = totals_D.masked_fill(totals_D.isneginf(), torch.inf)[:, None]
        ends_DL = torch.full_like(forwards[0], -torch.inf)
        ends_DL.scatter_(1, (num_vertices_D - 1)[:, None], 0.0)
        backward_DL = torch.full_like(ends_DL, -torch.inf)
        emissions_gradient_DKL = torch.zeros_like(emissions_DKL)
        for step in range(emissions_DKL.shape[1], 0, -1):
            backward_DL = torch.where((num_tokens_D == step)[:, None], ends_DL, backward_DL)
            emissions_gradient_DKL[:, step - 1] = (forwards[step] + backward_DL - totals_D1).exp_()
            onward_DL = emissions_DKL[:, step - 1] + backward_DL
            backward_DL = ctx.step.back(onward_DL, forwards[step - 1], totals_D1)
        gradient_D11 = gradient_D[:, None, None]
        return (
            ctx.step.gradient().mul_(gradient_D11),
            emissions_gradient_DKL.mul_(gradient_D11),
            None,
            None,
        )


class _Products:
    """Sums over links as products of matrices, in float64."""

    dtype = torch.float64

    def __init__(self, links_DLL: torch.Tensor) -> None:
        self._links_DLL = links_DLL.double().exp_()
        self._before: list[torch.Tensor] = []
        self._behind: list[torch.Tensor] = []

    def on(self, forward_DL: torch.Tensor) -> torch.Tensor:
        """To each vertex from all before it."""
        scaled_DL, scale_D1 = _scaled(forward_DL)
        return (scaled_DL[:, None] @ self._links_DLL)[:, 0].log_() + scale_D1

    def back(
        self, onward_DL: torch.Tensor, forward_DL: torch.Tensor, totals_D1: torch.Tensor
    ) -> torch.Tensor:
        """From each vertex to all behind it; what paths through these links add is kept."""
        scaled_DL, scale_D1 = _scaled(onward_DL)
        before_DL, before_scale_D1 = _scaled(forward_DL)
        self._before.append(before_DL)
        self._behind.append(scaled_DL * (before_scale_D1 + scale_D1 - totals_D1).exp_())
        return (self._links_DLL @ scaled_DL[..., None])[..., 0].log_() + scale_D1

    def gradient(self) -> torch.Tensor:
        """Of the links' log-probabilities."""
        before_DKL, behind_DKL = torch.stack(self._before, 1), torch.stack(self._behind, 1)
        self._before, self._behind = [], []
        return (before_DKL.transpose(1, 2) @ behind_DKL).mul_(self._links_DLL).float()


class _LogSums:
    """The same in log space, for texts of any improbability; several times as slow."""

    dtype = torch.float32

    def __init__(self, links_DLL: torch.Tensor) -> None:
        self._links_DLL = links_DLL
        self._gradient_DLL = torch.zeros_like(links_DLL)

    def on(self, forward_DL: torch.Tensor) -> torch.Tensor:
        """To each vertex from all before it."""
        return (forward_DL[:, :, None] + self._links_DLL).logsumexp(dim=1)

    def back(
        self, onward_DL: torch.Tensor, forward_DL: torch.Tensor, totals_D1: torch.Tensor
    ) -> torch.Tensor:
        """From each vertex to all behind it; what paths through these links add is kept."""
        ways_DLL = self._links_DLL + onward_DL[:, None, :]
        found_DL = ways_DLL.logsumexp(dim=2)
        self._gradient_DLL += ways_DLL.add_((forward_DL - totals_D1)[:, :, None]).exp_()
        return found_DL

    def gradient(self) -> torch.Tensor:
        """Of the links' log-probabilities."""
        gradient_DLL, self._gradient_DLL = self._gradient_DLL, torch.zeros_like(self._links_DLL)
        return gradient_DLL


def _scaled(logs_DL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As numbers of at most 1, and the log of the scale; 0 where there is nothing."""
    scale_D1 = logs_DL.amax(dim=1, keepdim=True)
    scale_D1 = scale_D1.masked_fill(scale_D1.isneginf(), 0.0)
    return (logs_DL - scale_D1).exp_(), scale_D1


def _forwards(step: _Products | _LogSums, emissions_DKL: torch.Tensor) -> torch.Tensor:
    """[K + 1, D, L]; log-probability of the text's first k tokens by all paths to a vertex."""
    forward_DL = torch.full_like(emissions_DKL[:, 0], -torch.inf, dtype=step.dtype)
    forward_DL[:, 0] = 0.0
    found = [forward_DL]
    for emission_DL in emissions_DKL.unbind(dim=1):
        found.append(step.on(found[-1]) + emission_DL)
    return torch.stack(found)


@torch.no_grad()
def best_paths(
    links_DLL: torch.Tensor,
    emissions_DKL: torch.Tensor,
    num_tokens_D: torch.Tensor,
    num_vertices_D: torch.Tensor,
) -> torch.Tensor:
    """int64 [D, K]; the vertex of each token on the likeliest path (Viterbi), -1 beyond a text's
    tokens. A path must exist."""
    score_DL = torch.full_like(emissions_DKL[:, 0], -torch.inf)
    score_DL[:, 0] = 0.0
    origins = []
    ways_DLL = torch.empty_like(links_DLL)
    for emission_DL in emissions_DKL.unbind(dim=1):
        best_DL, origin_DL = torch.add(score_DL[:, :, None], links_DLL, out=ways_DLL).max(dim=1)
        score_DL = best_DL + emission_DL
        origins.append(origin_DL)
    paths_DK = torch.full(emissions_DKL.shape[:2], -1, device=links_DLL.device)
    vertex_D = num_vertices_D - 1
    for step in range(emissions_DKL.shape[1] - 1, -1, -1):
        inside_D = step < num_tokens_D
        paths_DK[:, step] = torch.where(inside_D, vertex_D, -1)
        origin_D = origins[step].gather(1, vertex_D[:, None])[:, 0]
        vertex_D = torch.where(inside_D, origin_D, vertex_D)
    return paths_DK
