"""Translation in one pass: a text is any path through a graph of vertices that emit its tokens.

DA-Transformer (Huang et al., arXiv 2205.07459): the decoder is given several vertices for each
source token, all masks but the first, where the text begins. It predicts a token at each and where
to go from each; the cost is minus the log of the summed probability of all paths that spell the
text and end at the last vertex. Several translations may so live in one graph, side by side.

With `glancing` a first pass without gradient finds the likeliest path and what is wrong on it; some
of the text, the more the worse it is, is then shown at that path's vertices, which emit their token
for sure and no other. (DA-Transformer's own code keeps the first guess's probability there.)

Texts with more tokens than their graph has further vertices are left out, of the weight too, and
counted as `left_out`. Not done: pretraining, links limited in distance.

Shape suffixes: D documents, K tokens of one, L vertices of one, M vertices in all, B rows, G
vertices of a row, W width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from anyorder.core.batch import CrossMemory, dense_batch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities, AttentionKind
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import document_positions, same_document
from anyorder.core.pairs import encode_sources, reads
from anyorder.sampling.dag import best_paths, log_likelihood
from anyorder.sampling.partition import log_partition
from anyorder.sampling.row_costs import row_costs
from anyorder.sampling.subsets import random_subsets
from anyorder.sampling.vertices import Graphs


@dataclass(frozen=True, kw_only=True)
class Dag(Objective):
    """Predict a graph whose paths are translations."""

    attention: ClassVar[AttentionKind] = "bidirectional"
    needs_mask_token: ClassVar[bool] = True
    needs_sources: ClassVar[bool] = True

    glancing: Annotated[bool, "show some of the text, more where a first pass is wrong"] = False
    first_ratio: Annotated[
        float, Range(0.0, 1.0), "glancing: tokens shown for each mistake, at the start of the run"
    ] = 0.5
    last_ratio: Annotated[float, Range(0.0, 1.0), "glancing: the same at its end"] = 0.1

    def check(self, abilities: Abilities) -> None:
        """It needs vertices and links between them."""
        super().check(abilities)
        if not abilities.num_links:
            raise UserError(
                f"dag needs links between vertices, and {abilities.name} has none; give [model] "
                "vertices_per_token."
            )

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Nats over the targets of the documents that fit into their graphs."""
        states_BSW, source_documents_BS = encode_sources(model, batch)
        graphs = Graphs.of(batch, source_documents_BS, model.abilities.vertices_per_token)
        memory = reads(states_BSW, source_documents_BS, graphs.documents_BG)
        paths_DK = torch.zeros_like(graphs.texts_DK)
        shown_DK = torch.zeros_like(graphs.texts_DK, dtype=torch.bool)
        if self.glancing:
            paths_DK, num_wrong_D = _mistakes(model, graphs, memory)
            ratio = self.first_ratio + (self.last_ratio - self.first_ratio) * batch.progress
            units_D1 = torch.arange(len(paths_DK), device=paths_DK.device)[:, None]
            sizes_D = (ratio * num_wrong_D).round().long()
            shown_DK = random_subsets(graphs.tokens_DK, units_D1.expand_as(paths_DK), sizes_D, rng)
        hidden_MW, emissions_MK, _ = _predict(model, graphs, memory, paths_DK, shown_DK)
        total = hidden_MW.sum() * 0.0  # with a gradient, where there is no text at all
        for part in graphs.parts():
            links_DLL, emissions_DKL = _tables(model, graphs, part, hidden_MW, emissions_MK)
            given = (
                tensor_DK[part, : emissions_DKL.shape[1]]
                for tensor_DK in (graphs.texts_DK, paths_DK, shown_DK)
            )
            found_D = log_likelihood(
                links_DLL,
                _forced(emissions_DKL, *given),
                graphs.num_tokens_D[part],
                graphs.num_vertices_D[part],
            )
            total = total - found_D.sum()
        return Loss(
            total=total,
            weight=float(graphs.num_tokens_D.sum()),
            metrics={"nats": float(total.detach()), "left_out": float(graphs.num_left_out)},
        )


def _predict(
    model: TrainableModel,
    graphs: Graphs,
    memory: CrossMemory,
    paths_DK: torch.Tensor,
    shown_DK: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of every vertex: its hidden state [M, W], the log-probabilities there of its text's tokens
    [M, K], and of the likeliest token [M]."""
    banned = model.abilities.mask_token
    assert banned is not None, "check() refuses models without a mask token"
    packed = dense_batch(
        graphs.inputs(banned, paths_DK, shown_DK),
        same_document(graphs.documents_BG),
        document_positions(graphs.documents_BG),
        memory=memory,
    )
    places_M, documents_M = graphs.places()
    hidden_MW = model.hidden(packed)[places_M]

    def cost(logits_MV: torch.Tensor, texts_MK: torch.Tensor) -> torch.Tensor:
        logits_MV[:, banned] = -torch.inf  # in place: nobody else has them
        found = torch.cat((logits_MV.gather(1, texts_MK), logits_MV.amax(1, keepdim=True)), dim=1)
        return found - log_partition(logits_MV)[:, None]

    found = row_costs(model, hidden_MW, cost, graphs.texts_DK[documents_M])
    return hidden_MW, found[:, :-1], found[:, -1]


def _tables(
    model: TrainableModel,
    graphs: Graphs,
    part: slice,
    hidden_MW: torch.Tensor,
    emissions_MK: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Links [D, L, L] and emissions [D, K, L] of some documents; K and L are their own longest."""
    sizes = graphs.num_vertices_D.tolist()
    first, last = sum(sizes[: part.start]), sum(sizes[: part.stop])
    longest = int(graphs.num_tokens_D[part].max())
    hidden_DLW, emissions_DLK = (
        pad_sequence(list(torch.split(tensor[first:last], sizes[part])), batch_first=True)
        for tensor in (hidden_MW, emissions_MK[:, :longest])
    )
    links_DLL = model.links(hidden_DLW, graphs.num_vertices_D[part])
    return links_DLL, emissions_DLK.transpose(1, 2)


def _forced(
    emissions_DKL: torch.Tensor,
    texts_DK: torch.Tensor,
    paths_DK: torch.Tensor,
    shown_DK: torch.Tensor,
) -> torch.Tensor:
    """Vertices at which a token is shown emit it for sure, and no other."""
    tokens_DL = torch.full_like(emissions_DKL[:, 0], -1, dtype=torch.int64)
    documents_DK = torch.arange(len(paths_DK), device=paths_DK.device)[:, None].expand_as(paths_DK)
    tokens_DL[documents_DK[shown_DK], paths_DK[shown_DK]] = texts_DK[shown_DK]
    same_DKL = texts_DK[:, :, None] == tokens_DL[:, None, :]
    emissions_DKL = emissions_DKL.masked_fill(tokens_DL[:, None, :] >= 0, -torch.inf)
    return emissions_DKL.masked_fill(same_DKL, 0.0)


@torch.no_grad()
def _mistakes(
    model: TrainableModel, graphs: Graphs, memory: CrossMemory
) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest path [D, K] of each text when nothing of it is shown, and how many of its
    vertices [D] would rather emit another token."""
    nothing_DK = torch.zeros_like(graphs.texts_DK)
    hidden_MW, emissions_MK, tops_M = _predict(model, graphs, memory, nothing_DK, nothing_DK.bool())
    paths_DK, nums_wrong = nothing_DK.clone(), [graphs.num_tokens_D[:0]]
    for part in graphs.parts():
        links_DLL, emissions_DKL = _tables(model, graphs, part, hidden_MW, emissions_MK)
        path_DK = best_paths(
            links_DLL, emissions_DKL, graphs.num_tokens_D[part], graphs.num_vertices_D[part]
        ).clamp_(min=0)
        sizes = graphs.num_vertices_D.tolist()
        first = sum(sizes[: part.start])
        before_D = graphs.num_vertices_D[part].cumsum(0) - graphs.num_vertices_D[part]
        tops_DK = tops_M[first + before_D[:, None] + path_DK]
        reached_DK = emissions_DKL.gather(2, path_DK[:, :, None])[:, :, 0]
        wrong_DK = graphs.tokens_DK[part, : path_DK.shape[1]] & (reached_DK < tops_DK)
        paths_DK[part, : path_DK.shape[1]] = path_DK
        nums_wrong.append(wrong_DK.sum(dim=1))
    return paths_DK, torch.cat(nums_wrong)
