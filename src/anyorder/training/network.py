"""Kinds of networks that can be trained: frozen options plus `make` and `save`.

One file a kind in `training/networks/`, with one public class that is found by the recipe's
`[model] kind`; its fields are the rest of [model]. A kind makes its network (new, or from a
checkpoint), says what it can do, and saves it as the folder that inference loads. It knows nothing
of optimisers, steps or checkpoints of a run.

Importing this module does not import torch.

Shape suffixes: N packed tokens, M some of their rows, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from anyorder.core.method import Abilities
from anyorder.core.objective import Objective, TrainableModel
from anyorder.core.options import validate

if TYPE_CHECKING:
    import torch

    from anyorder.core.batch import KeyValuePool, Network, PackedBatch
    from anyorder.model.loaded import LoadedModel
    from anyorder.model.tokenizer import Tokenizer
    from anyorder.training.sections import AdapterRecipe


@dataclass(frozen=True, kw_only=True, eq=False)
class Surroundings:
    """What a network is made for."""

    tokenizer: Tokenizer
    """Of the data."""
    objective: Objective
    length: int
    """Tokens of a training sequence."""
    seed: int
    """Of new weights."""
    locate: Callable[[str], str]
    """A model that the recipe names, as `catalog.resolve` knows it."""
    counts: Callable[[int], torch.Tensor]
    """How often each of so many tokens is a target in an epoch of the data, int64."""
    teacher: LoadedModel | None = None
    """The frozen model of [teacher], in the type and the place of the passes."""
    adapter: AdapterRecipe | None = None
    """[adapter], for kinds that are `adaptable`."""
    grows: bool = False
    """Give the network rows for tokens that the tokenizer has and its checkpoint lacks?"""


class _Passes(Protocol):
    """What a trainee's network is called for; each kind has those that its objectives use."""

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor: ...

    def logits(
        self, hidden_MW: torch.Tensor, tokens_S: torch.Tensor | None = None
    ) -> torch.Tensor: ...

    scored: torch.Tensor | None

    def draft_logits(self, hidden_MW: torch.Tensor) -> torch.Tensor: ...

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor: ...

    def encode(self, batch: PackedBatch) -> torch.Tensor: ...

    def length_logits(self, states_MW: torch.Tensor) -> torch.Tensor: ...

    def links(self, hidden_DLW: torch.Tensor, num_vertices_D: torch.Tensor) -> torch.Tensor: ...

    def edits(
        self, hidden_MW: torch.Tensor, behind_MW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainee:
    """A network in training, as objectives see it (`core.objective.TrainableModel`)."""

    network: torch.nn.Module
    """float32, on the CPU when it is made. Parameters that do not require gradients stay as they
    are and are part of no checkpoint."""
    abilities: Abilities
    fields: Mapping[str, Any] = field(default_factory=dict)
    """config.json of the folder that it will be saved as."""
    adapter: AdapterRecipe | None = None
    """What it was adapted by."""
    teacher: TrainableModel | None = None
    companion: torch.nn.Module | None = None
    tokenizer: Tokenizer | None = None

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        """Final hidden states [N, W], with gradients."""
        return self._passes.hidden(batch, pool)

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, V] of some rows of `hidden`."""
        return self._passes.logits(hidden_MW)

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, heads, V] of further prediction heads."""
        return self._passes.heads(hidden_MW)

    def logits_of(self, hidden_MW: torch.Tensor, tokens_S: torch.Tensor | None) -> torch.Tensor:
        """`logits` of these tokens alone, [M, S]; None: of all."""
        return self._passes.logits(hidden_MW, tokens_S)

    @property
    def scored(self) -> torch.Tensor | None:
        """int64 [S]; the tokens that a drafter scores; None: all."""
        return self._passes.scored

    def draft_logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """A drafter's float32 logits of `scored` alone, [M, S]; of heads [M, heads, S]."""
        return self._passes.draft_logits(hidden_MW)

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """An encoder's output [N, W]."""
        return self._passes.encode(batch)

    def length_logits(self, states_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, lengths] of the target's length."""
        return self._passes.length_logits(states_MW)

    def links(self, hidden_DLW: torch.Tensor, num_vertices_D: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [D, L, L] of going from vertex to vertex."""
        return self._passes.links(hidden_DLW, num_vertices_D)

    def edits(
        self, hidden_MW: torch.Tensor, behind_MW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of what is missing [M, counts], and of what does not belong [M]."""
        return self._passes.edits(hidden_MW, behind_MW)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        rng: torch.Generator,
        top_p: float = 1.0,
    ) -> list[list[int]]:
        """Continuations drawn from the model as it is now; see `rollouts`."""
        from anyorder.training.rollouts import generate

        return generate(
            cast("Network", self.network),
            self.abilities,
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            rng=rng,
            top_p=top_p,
        )

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say, control tokens left out."""
        assert self.tokenizer is not None, "setup gives every trainee the data's tokenizer"
        return self.tokenizer.decode(tokens)

    @property
    def _passes(self) -> _Passes:
        return cast(_Passes, self.network)


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe:
    """[model]: base of all kinds. A subclass's fields are its options."""

    needs_teacher: ClassVar[bool] = False
    """Is it made for the model of [teacher] (a drafter)? A recipe without one is then refused."""
    adaptable: ClassVar[bool] = False
    """Does `make` heed `Surroundings.adapter`?"""

    def __post_init__(self) -> None:
        validate(self)

    @property
    def source(self) -> str | None:
        """The model that it starts from, whose tokenizer is the data's too; None: it is new."""
        return None

    @property
    def longest(self) -> int | None:
        """The longest sequence, where the recipe alone decides it."""
        return None

    def make(self, surroundings: Surroundings) -> Trainee:
        """The network in float32 on the CPU; UserError if the recipe asks for what does not fit.

        New weights depend on the seed alone."""
        raise AssertionError(f"{type(self).__name__} does not define make()")

    def save(self, folder: Path, trainee: Trainee, tokenizer_folder: Path) -> None:
        """Write the folder that inference loads, in place of what was there."""
        raise AssertionError(f"{type(self).__name__} does not define save()")
