"""From a recipe to what its run works on: network, teacher, companion, tokenizer and data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.objective import TrainingBatch
from anyorder.model import catalog
from anyorder.model.loaded import LoadedModel, load
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.config import Recipe
from anyorder.training.network import Surroundings, Trainee
from anyorder.training.remembering import RememberingTeacher


class Sequences(Protocol):
    """Training data; `data.PackedDataset` is one."""

    @property
    def num_sequences(self) -> int:
        """Of an epoch."""

    @property
    def length(self) -> int:
        """Tokens of each."""

    def batch(
        self, step: int, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> TrainingBatch:
        """The sequences of step 0, 1, ..., a function of the arguments alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """What a run learns from."""

    train: Sequences
    validation: Sequences | None
    tokenizer_folder: Path
    fingerprint: str = ""
    """Changes when the data do."""
    left_out: tuple[str, ...] = ()
    """A line for each source that has what cannot be used: how much, and the first reason."""


def tokenizer_folder(source: str) -> Path:
    """The folder of the model whose tokenizer is asked for."""
    found = catalog.resolve(source)
    if found.kind != "folder":
        raise UserError(
            f"{source} is a GGUF file; training needs a folder of safetensors with a tokenizer."
        )
    return found.path


def device_of(recipe: Recipe) -> torch.device:
    """Where the passes run."""
    kind = recipe.run.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(kind)


def make_trainee(recipe: Recipe, data: TrainingData, device: torch.device) -> Trainee:
    """The recipe's network in float32, with teacher and companion. UserError if the recipe asks for
    what does not fit together."""
    tokenizer = Tokenizer.from_folder(data.tokenizer_folder)
    teacher = None
    if recipe.teacher is not None:
        source = recipe.source(recipe.teacher.init)
        teacher = load(source, dtype=recipe.run.dtype, device=device)
        _check_fit(recipe, tokenizer, teacher.abilities)
    trainee = recipe.model.make(
        Surroundings(
            tokenizer=tokenizer,
            objective=recipe.objective,
            length=max(recipe.data.length, recipe.data.source_length or 0),
            seed=recipe.run.seed,
            locate=recipe.source,
            counts=lambda size: _counts(data.train, size),
            teacher=teacher,
            adapter=recipe.adapter,
            grows=recipe.data.add_tokens,
        )
    )
    abilities = trainee.abilities
    _check_fit(recipe, tokenizer, abilities)
    recipe.objective.check(abilities)
    # A companion draws its first weights from torch's own generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        companion = recipe.objective.companion(abilities)
    return replace(
        trainee,
        network=trainee.network.to(device).train(),
        abilities=recipe.objective.trained(abilities),
        teacher=None if teacher is None else _frozen(recipe, teacher, tokenizer),
        companion=None if companion is None else companion.to(device).train(),
        tokenizer=tokenizer,
    )


def _check_fit(recipe: Recipe, tokenizer: Tokenizer, abilities: Abilities) -> None:
    if tokenizer.vocabulary_size > abilities.vocabulary_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens, but {abilities.name} has "
            f"{abilities.vocabulary_size}; use the model's own tokenizer."
        )
    if recipe.data.length > abilities.context_length:
        raise UserError(
            f"[data] length is {recipe.data.length}, but the context of {abilities.name} is "
            f"{abilities.context_length} tokens; lower length."
        )
    source_length = recipe.data.source_length or recipe.data.length
    if recipe.objective.needs_sources and source_length > (abilities.source_length or math.inf):
        raise UserError(
            f"[data] source_length is {source_length}, but {abilities.name} reads sources of up to "
            f"{abilities.source_length} tokens; lower it, or give a new [model] more context."
        )


def _counts(data: Sequences, size: int) -> torch.Tensor:
    counts = torch.zeros(size, dtype=torch.int64)
    for number in range(data.num_sequences):
        batch = data.batch(number, batch_size=1)
        counts += torch.bincount(batch.tokens_BT[batch.targets_BT], minlength=size)
    return counts


def _frozen(recipe: Recipe, teacher: LoadedModel, tokenizer: Tokenizer) -> Trainee:
    assert recipe.teacher is not None, "that is where it comes from"
    network, states = teacher.network, recipe.teacher.states
    assert isinstance(network, torch.nn.Module), "what a folder holds is a module"
    network.requires_grad_(False)
    frozen = Trainee(network=network, abilities=teacher.abilities, tokenizer=tokenizer)
    return RememberingTeacher.of(frozen, recipe.path(states)) if states else frozen
