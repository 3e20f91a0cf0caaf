"""Forward and backward passes of a run: the network that is trained, in the type of the passes.

Weights are trained in float32. With bfloat16 the passes run on a rounded copy, made anew for every
step, and their gradients are added up in float32. In a team of processes FSDP2 does both.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from anyorder.core import lookup
from anyorder.core.errors import UserError
from anyorder.core.objective import Loss, Objective, TrainingBatch
from anyorder.model.transformer import Transformer
from anyorder.training.config import Recipe
from anyorder.training.dropout import add_dropout, drawn_by
from anyorder.training.network import Trainee
from anyorder.training.team import Team, part_of, whole


class _Call(nn.Module):
    """The objective's loss as a module: all that a pass computes with is part of it, so that
    whatever watches modules (FSDP) sees where a pass begins and ends."""

    def __init__(self, objective: Objective, trainee: Trainee) -> None:
        super().__init__()
        self.network, self.companion = trainee.network, trainee.companion
        self._objective, self._trainee = objective, trainee

    def forward(
        self, batch: TrainingBatch, rng: torch.Generator
    ) -> tuple[torch.Tensor, float, Mapping[str, float]]:
        """The fields of a `Loss`."""
        loss = self._objective.loss(self._trainee, batch, rng)
        return loss.total.clone(), loss.weight, loss.metrics  # FSDP wants no view


class Passes:
    """Runs a recipe's objective on a trainee; gradients are left in the trainee's parameters."""

    def __init__(self, trainee: Trainee, recipe: Recipe, device: torch.device, team: Team) -> None:
        dtype: torch.dtype = getattr(torch, recipe.run.dtype)
        self.trainee = trainee
        self._device, self._team = device, team
        self._drops = recipe.run.dropout > 0
        if recipe.objective.draws_texts and team.num_shares > 1:
            name = lookup.name_of(recipe.objective)
            raise UserError(
                f"{name} draws texts, which {team.num_shares} processes that share the parameters "
                "cannot do side by side; train it with one process."
            )
        worker = trainee
        if team.size == 1 and dtype != torch.float32:
            # The teacher comes in this type already.
            network, companion = copy.deepcopy((trainee.network, trainee.companion))
            worker = dataclasses.replace(
                trainee,
                network=network.to(dtype),
                companion=None if companion is None else companion.to(dtype),
            )
        self._blank: nn.Module | None = None
        if team.size > 1:
            self._blank = _filled(
                trainee.network,
                {n: p.to("meta") for n, p in trainee.network.named_parameters()},
            )
        self._call = _Call(recipe.objective, worker)
        _arrange(worker.network, recipe)
        self._orders: Mapping[str, torch.Tensor] = {}
        if team.size > 1:
            from anyorder.training.sharding import shard

            layers = _layers(trainee.network)
            self._orders = shard(self._call, trainee.network, layers, team, dtype=dtype)
        self._pairs = [
            (rounded, exact)
            for (_, rounded), (_, exact) in zip(_trained(worker), _trained(trainee), strict=True)
            if rounded is not exact
        ]

    def loss(self, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """The objective's loss of a batch, which may lie on another device."""
        tensors: dict[str, Any] = {n: t.to(self._device) for n, t in _tensors(batch).items()}
        with drawn_by(rng) if self._drops else contextlib.nullcontext():
            total, weight, metrics = self._call(dataclasses.replace(batch, **tensors), rng)
        return Loss(total=total, weight=weight, metrics=metrics)

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

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained, by name; in a team a process's parts."""
        return _trained(self.trainee)

    def clip(self, limit: float) -> float:
        """Scale the gradients down to a norm of at most `limit`; returns the norm before."""
        parameters = [parameter for _, parameter in self.parameters()]
        if self._team.size == 1:
            return float(nn.utils.clip_grad_norm_(parameters, limit))
        from anyorder.training.sharding import clip_gradients

        return clip_gradients(parameters, limit, self._team)

    # ------------------------------------------------------------------- between parts and wholes
    def whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters, or states named parameter/kind, as one process would have them; for the
        leader, but the whole team must ask."""
        found = {}
        for name, tensor in tensors.items():
            order = self._orders.get(name.partition("/")[0]) if tensor.dim() else None
            full = whole(tensor, order)
            if self._team.leads:
                found[name] = full
        return found

    def parts(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The reverse: what this process has of whole tensors."""
        owners, found = dict(self.parameters()), {}
        for name, tensor in tensors.items():
            owner = name.partition("/")[0]
            if tensor.dim():
                tensor = part_of(tensor, owners[owner], self._orders.get(owner))
            found[name] = tensor  # a step count is everybody's, and stays on the CPU
        return found

    def finished(self) -> Trainee:
        """The trainee as it can be saved; for the leader, but the whole team must ask."""
        if self._blank is None:
            return self.trainee
        weights = self.whole(dict(self.trainee.network.named_parameters()))
        network = _filled(self._blank, weights) if self._team.leads else self._blank
        return dataclasses.replace(self.trainee, network=network)


def split(batch: TrainingBatch, num_parts: int) -> Iterator[TrainingBatch]:
    """The batch's sequences in consecutive parts of equal size."""
    tensors = _tensors(batch)
    pieces = (tensor.chunk(num_parts) for tensor in tensors.values())
    for parts in zip(*pieces, strict=True):
        yield dataclasses.replace(batch, **dict(zip(tensors, parts, strict=True)))


def _arrange(network: nn.Module, recipe: Recipe) -> None:
    """Checkpoint and compile the layers, with dropout or without, as the recipe says."""
    if recipe.run.dropout:
        add_dropout(network, recipe.run.dropout)
    layers = _layers(network)
    for name in ("checkpoint_layers", "compile"):
        if getattr(recipe.run, name) and not layers:
            raise UserError(f"[run] {name} is for networks with layers of a transformer.")
    for layer in layers:
        if recipe.run.checkpoint_layers:
            # Dropout is all that is drawn within a layer.
            drawn = recipe.run.dropout > 0
            run = functools.partial(
                checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=drawn
            )
            layer.forward = run
        if recipe.run.compile:
            layer.compile()


def _filled(network: nn.Module, values: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of a network with other values, its parameters shared as in the original."""
    copies = {
        id(parameter): nn.Parameter(values[name].detach(), requires_grad=parameter.requires_grad)
        for name, parameter in network.named_parameters()
    }
    return copy.deepcopy(network, copies)


def _layers(network: nn.Module) -> list[nn.Module]:
    """The layers that are run as a whole; drafters run some parts of theirs."""
    stacks = [module for module in network.modules() if isinstance(module, Transformer)]
    return list(dict.fromkeys(layer for stack in stacks for layer in stack.layers))


def _trained(trainee: Trainee) -> Iterator[tuple[str, nn.Parameter]]:
    """What is trained: of the network, and of the companion under names of its own."""
    for name, parameter in trainee.network.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
    if trainee.companion is not None:
        for name, parameter in trainee.companion.named_parameters(prefix="companion"):
            if parameter.requires_grad:
                yield name, parameter


def _tensors(batch: TrainingBatch) -> dict[str, torch.Tensor]:
    """The batch's tensors by field."""
    values = ((field.name, getattr(batch, field.name)) for field in dataclasses.fields(batch))
    return {name: value for name, value in values if isinstance(value, torch.Tensor)}
