"""A training objective: frozen options plus `loss(model, batch, rng)`.

One file an objective in `training/objectives/`, found by its name like a method. Objectives see a
model through `TrainableModel`, the decoder that inference runs too, and know nothing of optimisers,
files or devices.

Shape suffixes: B sequences, T tokens each, N = B * T packed tokens, M some of them, W width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from anyorder.core.errors import UserError
from anyorder.core.method import Abilities, AttentionKind
from anyorder.core.options import validate

if TYPE_CHECKING:
    import torch

    from anyorder.core.batch import KeyValuePool, PackedBatch


class TrainableModel(Protocol):
    """A network as an objective sees it."""

    @property
    def abilities(self) -> Abilities:
        """Vocabulary, context, mask token, end tokens, ..."""

    @property
    def teacher(self) -> TrainableModel | None:
        """The frozen model of the recipe's [teacher], free of gradients; None without one."""

    @property
    def companion(self) -> torch.nn.Module | None:
        """What `Objective.companion` made."""

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        """Final hidden states [N, W], with gradients; `core.batch.dense_batch` makes the batch.
        `pool`: what keeps keys and values, where the batch says that there is one."""

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, V] of some rows of `hidden`."""

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, heads, V] of further prediction heads, for networks that have some."""

    def logits_of(self, hidden_MW: torch.Tensor, tokens_S: torch.Tensor | None) -> torch.Tensor:
        """`logits` of these tokens alone, [M, S]; None: of all. Plain decoders only."""

    @property
    def scored(self) -> torch.Tensor | None:
        """int64 [S]; the tokens that a drafter scores; None: all. Drafters only."""

    def draft_logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits of `scored` alone, [M, S], or of further heads [M, heads, S]; drafters
        only."""

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """An encoder's output [N, W] for its own tokens; encoder-decoder networks only."""

    def length_logits(self, states_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, lengths] of the target's length, from rows of `encode` at the first
        token of each source; encoder-decoder networks with a length head only."""

    def links(self, hidden_DLW: torch.Tensor, num_vertices_D: torch.Tensor) -> torch.Tensor:
        """float32 [D, L, L]; log-probabilities of going from one to another of a decoding graph's
        vertices, -inf where not possible; networks with `Abilities.vertices_per_token` only."""

    def edits(
        self, hidden_MW: torch.Tensor, behind_MW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 logits, from rows of `hidden` and those of the tokens behind (zeros: there is
        none): of how many tokens are missing in between [M, counts], and of the row's own token not
        belonging where it is [M]; networks with `Abilities.num_insertions` only."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        rng: torch.Generator,
        top_p: float = 1.0,
    ) -> list[list[int]]:
        """Continuations drawn from the model as it is now, without gradients: token ids up to and
        with an end token, without the prompt."""

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say, control tokens left out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingBatch:
    """Sequences of equal length, packed from documents."""

    tokens_BT: torch.Tensor
    """int64"""
    documents_BT: torch.Tensor
    """int64; which document of its row a token belongs to, -1 for padding. Tokens of different
    documents never see each other, and positions begin anew with each."""
    targets_BT: torch.Tensor
    """bool; tokens that the objective may ask the model to produce. False for padding and for what
    is only given (a prompt)."""
    sources_BS: torch.Tensor | None = None
    """int64; the source side of parallel texts, packed like the targets; S may differ from T."""
    source_documents_BS: torch.Tensor | None = None
    """int64; document k of a row's targets has source document k of that row; -1 is padding."""
    progress: float = 0.0
    """Share of the run that lies behind; 0 in validation, whose values shall be comparable."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss:
    """What one batch cost."""

    total: torch.Tensor
    """Scalar with gradients: the sum over `weight` units, not their mean, so that batches of
    different sizes add up to what one large batch would have given."""
    weight: float
    """How many units (usually target tokens) `total` is a sum over."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Sums over the same units of what else is worth a line in the log."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Base of all objectives. A subclass's fields are its options."""

    attention: ClassVar[AttentionKind] = "causal"
    """The kind of attention that a model trained with it has learnt (`Abilities.attention`)."""
    needs_mask_token: ClassVar[bool] = False
    needs_sources: ClassVar[bool] = False
    """Does it learn from pairs (`TrainingBatch.sources_BS`)? They need an encoder-decoder."""
    needs_teacher: ClassVar[bool] = False
    """Does it run `model.teacher`? A recipe without [teacher] is then refused."""
    draws_texts: ClassVar[bool] = False
    """Does it run `model.generate`? How many passes that takes depends on the texts, so processes
    that share the parameters cannot do it side by side."""
    control_tokens: ClassVar[tuple[str, ...]] = ()
    """Control tokens that a tokenizer trained for it has besides the usual ones."""

    def __post_init__(self) -> None:
        validate(self)

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """The batch's loss. All randomness comes from `rng` (on the CPU), so that a step can be
        repeated exactly."""
        raise AssertionError(f"{type(self).__name__} does not define loss()")

    def check(self, abilities: Abilities) -> None:
        """Raise UserError if the model lacks what the objective needs."""
        name = type(self).__name__
        if self.needs_sources and not abilities.source_length:
            raise UserError(
                f"{name} learns from pairs of a source and a target, and {abilities.name} has no "
                'encoder for the source; give [model] kind = "encoder_decoder".'
            )
        if abilities.source_length and not self.needs_sources:
            raise UserError(
                f"{name} has no use for sources, which {abilities.name} encodes; give another "
                'objective, such as "encoder_decoder", or another kind of [model].'
            )
        if self.needs_mask_token and abilities.mask_token is None:
            raise UserError(
                f"{type(self).__name__} needs a mask token; {abilities.name} has none. Give [data] "
                "add_tokens = true, which adds one, or another tokenizer."
            )

    def companion(self, abilities: Abilities) -> torch.nn.Module | None:
        """A module that only training needs (a discriminator, a network that predicts lengths):
        trained and checkpointed with the network, but no part of the finished model."""
        return None

    def trained(self, abilities: Abilities) -> Abilities:
        """What a model can do once it was trained with this objective."""
        mask_token = abilities.mask_token if self.needs_mask_token else None
        attention = frozenset({self.attention})
        return replace(abilities, attention=attention, mask_token=mask_token)
