"""Forward and backward passes of a run: the network that is trained, in the type of the passes.

Weights are trained in float32. With bfloat16 the passes run on a rounded copy, made anew for every
step, and their gradients are added up in float32.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from anyorder.core.objective import Loss, Objective, TrainingBatch
from anyorder.training.network import Trainee


class Passes:
    """Runs an objective on a trainee; gradients are left in the trainee's parameters."""

    def __init__(self, trainee: Trainee, objective: Objective, *, dtype: torch.dtype) -> None:
        self._objective = objective
        self._trainee = self._worker = trainee
        if dtype != torch.float32:
            # The teacher comes in this type already.
            network, companion = copy.deepcopy((trainee.network, trainee.companion))
            self._worker = dataclasses.replace(
                trainee,
                network=network.to(dtype),
                companion=None if companion is None else companion.to(dtype),
            )
        self._pairs = [
            (rounded, exact)
            for (_, rounded), (_, exact) in zip(
                named_parameters(self._worker), named_parameters(trainee), strict=True
            )
            if rounded is not exact
        ]

    def loss(self, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """The objective's loss of a batch, which may lie on another device."""
        device = next(self._trainee.network.parameters()).device
        tensors = {name: tensor.to(device) for name, tensor in _tensors(batch).items()}
        return self._objective.loss(self._worker, dataclasses.replace(batch, **tensors), rng)

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the weights anew."""
        for rounded, exact in self._pairs:
            rounded.copy_(exact)

    def collect(self) -> None:
        """Add up the gradients of rounded passes in float32."""
        for rounded, exact in self._pairs:
            if rounded.grad is not None:
                new = rounded.grad.float()
                exact.grad = new if exact.grad is None else exact.grad.add_(new)
                rounded.grad = None


def named_parameters(trainee: Trainee) -> Iterator[tuple[str, nn.Parameter]]:
    """What is trained: of the network, and of the companion under names of its own."""
    yield from _trained(trainee.network, "")
    if trainee.companion is not None:
        yield from _trained(trainee.companion, "companion.")


def _trained(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in module.named_parameters(prefix=prefix.rstrip(".")):
        if parameter.requires_grad:
            yield name, parameter


def _tensors(batch: TrainingBatch) -> dict[str, torch.Tensor]:
    """The batch's tensors by field."""
    values = ((field.name, getattr(batch, field.name)) for field in dataclasses.fields(batch))
    return {name: value for name, value in values if isinstance(value, torch.Tensor)}


def split(batch: TrainingBatch, num_parts: int) -> Iterator[TrainingBatch]:
    """The batch's sequences in consecutive parts of equal size."""
    tensors = _tensors(batch)
    pieces = (tensor.chunk(num_parts) for tensor in tensors.values())
    for parts in zip(*pieces, strict=True):
        yield dataclasses.replace(batch, **dict(zip(tensors, parts, strict=True)))
