"""Tiny models to train, batches packed by hand, and means of a loss over many draws of noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from tests.tiny import tiny_config

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.core.method import Abilities
from anyorder.core.objective import Objective, TrainableModel, TrainingBatch
from anyorder.core.plans import PlanTokens
from anyorder.model.config import LayerConfig, Rope
from anyorder.model.encoder_decoder import EncoderDecoder
from anyorder.model.transformer import Transformer
from anyorder.training import rollouts
from anyorder.training.objectives.ctc import Ctc
from anyorder.training.objectives.dag import Dag
from anyorder.training.objectives.insertion import Insertion
from anyorder.training.objectives.mask_predict import MaskPredict

PLAN = PlanTokens(topic=50, topic_end=51, span=52, span_end=53, sync=54, pad=55, digits={})
"""Tags among the toys' tokens; in the smallest vocabularies none of them occurs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ToyModel:
    """A `TrainableModel` around a tiny network."""

    network: Transformer
    abilities: Abilities
    teacher: TrainableModel | None = None
    companion: torch.nn.Module | None = None
    seed: int = 0
    spread: float = 0.2

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        return self.network.hidden(batch, pool)

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        return self.network.logits(hidden_MW)

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        return self.network.heads(hidden_MW)

    def logits_of(self, hidden_MW: torch.Tensor, tokens_S: torch.Tensor | None) -> torch.Tensor:
        return self.network.logits(hidden_MW, tokens_S)

    @property
    def scored(self) -> torch.Tensor | None:
        scored: torch.Tensor | None = self._drafter.scored
        return scored

    def draft_logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._drafter.draft_logits(hidden_MW)
        return found

    @property
    def _drafter(self) -> Any:
        return getattr(self.network, "further", self.network)  # heads loaded for a target

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        return self._pair.encode(batch)

    def length_logits(self, states_MW: torch.Tensor) -> torch.Tensor:
        return self._pair.length_logits(states_MW)

    def links(self, hidden_DLW: torch.Tensor, num_vertices_D: torch.Tensor) -> torch.Tensor:
        return self._pair.links(hidden_DLW, num_vertices_D)

    def edits(
        self, hidden_MW: torch.Tensor, behind_MW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._pair.edits(hidden_MW, behind_MW)

    @property
    def _pair(self) -> EncoderDecoder:
        assert isinstance(self.network, EncoderDecoder), "see equip()"
        return self.network

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        rng: torch.Generator,
        top_p: float = 1.0,
    ) -> list[list[int]]:
        return rollouts.generate(
            self.network,
            self.abilities,
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            rng=rng,
            top_p=top_p,
        )

    def text(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))


def toy_model(
    vocabulary: int = 61,
    *,
    mask: bool = True,
    seed: int = 0,
    spread: float = 0.2,
    **changes: Any,
) -> ToyModel:
    """Random weights in float64, with gradients; the last id is the mask token."""
    config = tiny_config(vocabulary_size=vocabulary, **changes)
    network = Transformer.random(config, seed=seed, spread=spread, dtype=torch.float64)
    network.requires_grad_(True)
    abilities = Abilities(
        name="toy",
        vocabulary_size=vocabulary,
        context_length=config.context_length,
        mask_token=vocabulary - 1 if mask else None,
        # Any ids do; in a vocabulary of two symbols, these.
        infill_tokens=(0, 1, 0) if vocabulary < 8 else (vocabulary - 4, vocabulary - 3, 7),
        plan_tokens=PLAN,
    )
    return ToyModel(network=network, abilities=abilities, seed=seed, spread=spread)


def equip(model: ToyModel, objective: Objective) -> ToyModel:
    """The model with what the objective needs besides it: an encoder, another model as its teacher,
    and its companion."""
    if objective.needs_sources:
        model = with_encoder(
            model,
            lengths=isinstance(objective, MaskPredict),
            vertices=isinstance(objective, Dag | Ctc),
            links=isinstance(objective, Dag),
            edits=isinstance(objective, Insertion),
        )
    teacher = None
    if objective.needs_teacher:
        config = model.network.config
        network = Transformer.random(config, seed=77, spread=0.3, dtype=torch.float64)
        teacher = ToyModel(network=network, abilities=model.abilities)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        companion = objective.companion(model.abilities)
    companion = None if companion is None else companion.double()
    return replace(model, teacher=teacher, companion=companion)


def with_encoder(
    model: ToyModel,
    *,
    lengths: bool = False,
    vertices: bool = False,
    links: bool = False,
    edits: bool = False,
) -> ToyModel:
    """A model like it with an encoder, and where wanted with a length head, vertices and links, or
    edit heads."""
    config = model.network.config
    encoder = replace(config, tied_embeddings=True)
    changes: dict[str, Any] = {"encoder": encoder, "length_classes": 32 * lengths}
    # Few for the models whose paths are all enumerated, else enough for twenty tokens.
    per_token = (2 if model.abilities.vocabulary_size < 8 else 5) * vertices
    changes |= {"link_heads": 2 * links, "vertices_per_token": per_token}
    # Those models' texts lack up to four tokens: more than a head can count.
    num_insertions = (4 if model.abilities.vocabulary_size < 8 else 32) * edits
    changes |= {"insertion_classes": num_insertions}
    network = EncoderDecoder.random(
        replace(config, **changes), seed=model.seed, spread=model.spread, dtype=torch.float64
    )
    network.requires_grad_(True)
    abilities = replace(
        model.abilities,
        source_length=config.context_length,
        num_lengths=32 * lengths,
        vertices_per_token=per_token,
        num_links=2 * links,
        num_insertions=num_insertions,
    )
    return replace(model, network=network, abilities=abilities)


def source_of(number: int) -> list[int]:
    """The source that `pack` gives to a row's documents by their number."""
    return [[1, 0, 1], [0, 1], [1, 1, 0, 0]][number % 3]


def tiniest_model(vocabulary: int, *, mask: bool) -> ToyModel:
    """One narrow layer: for means over very many draws."""
    layer = LayerConfig(rope=Rope(width=8), attention_scale=8**-0.5)
    sizes = {"width": 8, "num_heads": 1, "num_kv_heads": 1, "mlp_width": 8}
    return toy_model(vocabulary, mask=mask, seed=3, spread=0.7, layers=(layer,), **sizes)


def pack(
    *rows: Sequence[Sequence[int]],
    given: Sequence[tuple[int, int]] = (),
    length: int = 0,
) -> TrainingBatch:
    """Rows of documents, padded to the longest; `given` are (row, place) of no targets. Each
    document has a source too, for objectives that want one."""
    tokens, documents = _padded(rows, length)
    targets = documents >= 0
    for index, place in given:
        targets[index, place] = False
    sources, source_documents = _padded([list(map(source_of, range(len(row)))) for row in rows])
    return TrainingBatch(
        tokens_BT=tokens,
        documents_BT=documents,
        targets_BT=targets,
        sources_BS=sources,
        source_documents_BS=source_documents,
    )


def _padded(
    rows: Sequence[Sequence[Sequence[int]]], length: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(length, *(sum(map(len, row)) for row in rows))
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    documents = torch.full((len(rows), length), -1)
    for index, row in enumerate(rows):
        flat = [token for document in row for token in document]
        tokens[index, : len(flat)] = torch.tensor(flat)
        documents[index, : len(flat)] = torch.tensor(
            [number for number, document in enumerate(row) for _ in document]
        )
    return tokens, documents


def repeat(batch: TrainingBatch, times: int) -> TrainingBatch:
    """Every row so many times."""
    return each(batch, lambda tensor: tensor.repeat(times, 1))


def each(batch: TrainingBatch, change: Callable[[torch.Tensor], torch.Tensor]) -> TrainingBatch:
    """The batch with every tensor changed alike."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    changed = {name: change(v) for name, v in values.items() if isinstance(v, torch.Tensor)}
    return replace(batch, **changed)


def words(seed: int, length: int, vocabulary: int = 60) -> list[int]:
    """Random ids below `vocabulary`, the mask token of `toy_model` not among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (length,), generator=generator).tolist()  # type: ignore[no-any-return]


@torch.no_grad()
def mean_loss(
    objective: Objective, model: TrainableModel, batch: TrainingBatch, *, draws: int, seed: int = 0
) -> tuple[float, float]:
    """Mean of the total over draws of noise, and its standard error."""
    rng = torch.Generator().manual_seed(seed)
    totals = [float(objective.loss(model, batch, rng).total) for _ in range(draws)]
    return statistics.fmean(totals), statistics.stdev(totals) / math.sqrt(draws)
