"""AdamW (arXiv 1711.05101), and Muon for hidden matrices beside it.

Muon: momentum, made nearly orthogonal by five Newton-Schulz iterations (Jordan et al., 2024, "Muon:
an optimizer for hidden layers in neural networks"). Updates are scaled to the size of AdamW's (Liu
et al., arXiv 2502.16982), so that one learning rate serves both. Matrices that the network fuses
(queries, keys and values; gate and up) are made orthogonal one by one. Embedding, output layer,
norms, biases and stacks of experts stay with AdamW.

Shape suffixes: R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from anyorder.model.attention import Attention
from anyorder.training.sections import OptimizerRecipe
from anyorder.training.team import is_spread, part_of, whole

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose iteration brings singular values near 1, from Jordan et al."""


class Muon:
    """Orthogonalised momentum for some matrices, each given with the rows of its parts."""

    def __init__(
        self,
        parts: Mapping[nn.Parameter, list[int]],
        *,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype`: of the iterations; bfloat16 halves their time and costs nothing measurable, as
        singular values need not be exact."""
        self.state: dict[torch.Tensor, dict[str, torch.Tensor]] = {
            matrix: {"momentum": torch.zeros_like(matrix)} for matrix in parts
        }
        self._parts = parts
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._dtype = dtype

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update from the gradients."""
        for matrix_RC, rows in self._parts.items():
            assert matrix_RC.grad is not None, "every matrix has a gradient after backward"
            mean_RC = self.state[matrix_RC]["momentum"]
            mean_RC.mul_(self._momentum).add_(matrix_RC.grad)
            ahead_RC = whole(matrix_RC.grad.add(mean_RC, alpha=self._momentum))
            update_RC = torch.cat(
                [
                    orthogonalize(part_RC.to(self._dtype)).float()
                    * (0.2 * max(part_RC.shape) ** 0.5)
                    for part_RC in torch.split(ahead_RC, rows)
                ]
            )
            matrix_RC.mul_(1.0 - learning_rate * self._weight_decay)
            matrix_RC.add_(part_of(update_RC, matrix_RC), alpha=-learning_rate)


def orthogonalize(matrix_RC: torch.Tensor, num_iterations: int = 5) -> torch.Tensor:
    """A matrix with the singular vectors of `matrix_RC` and singular values between about 0.7 and
    1.2."""
    a, b, c = _COEFFICIENTS
    wide = matrix_RC.T if matrix_RC.shape[0] > matrix_RC.shape[1] else matrix_RC
    x: torch.Tensor = wide / wide.norm().clamp(min=1e-7)
    for _ in range(num_iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if wide is not matrix_RC else x


class Optimizer:
    """All that is trained, each parameter with the optimiser that suits it."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        network: nn.Module,
        recipe: OptimizerRecipe,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`parameters` are all that is trained, by name; some of them are the network's. `dtype`:
        of the run's passes."""
        self._recipe = recipe
        self._names: dict[torch.Tensor, str] = {
            parameter: name for name, parameter in parameters.items()
        }
        hidden = dict(_hidden_matrices(network)) if recipe.name == "muon" else {}
        rest = [parameter for parameter in self._names if parameter not in hidden]
        self._muon = Muon(
            hidden, momentum=recipe.momentum, weight_decay=recipe.weight_decay, dtype=dtype
        )
        self._adamw = torch.optim.AdamW(
            [
                {
                    "params": [p for p in rest if p.dim() >= 2],
                    "weight_decay": recipe.weight_decay,
                },
                {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=(recipe.beta1, recipe.beta2),
            eps=recipe.epsilon,
            # torch cannot take tensors with and without parts at once.
            foreach=False if len({is_spread(p) for p in rest}) > 1 else None,
        )

    def step(self, factor: float) -> None:
        """One update from the gradients, at `factor` of the recipe's learning rate."""
        learning_rate = self._recipe.learning_rate * factor
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self._muon.step(learning_rate)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that an update depends on besides weights and gradients."""
        states: dict[torch.Tensor, dict[str, torch.Tensor]] = {
            **self._adamw.state,
            **self._muon.state,
        }
        return {
            f"{self._names[parameter]}/{key}": value
            for parameter, values in states.items()
            for key, value in values.items()
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` returned."""
        parameters = {name: parameter for parameter, name in self._names.items()}
        for key, value in state.items():
            name, _, kind = key.rpartition("/")
            parameter = parameters[name]
            muon = parameter in self._muon.state
            target = self._muon.state if muon else self._adamw.state
            # torch keeps the step count on the CPU, everything else beside the weights.
            device = value.device if value.dim() == 0 else parameter.device
            target[parameter][kind] = value.to(device)


def _hidden_matrices(network: nn.Module) -> Iterator[tuple[nn.Parameter, list[int]]]:
    """The matrices of the network's layers, with the rows of what each fuses."""
    for name, parameter in network.named_parameters():
        inside = "layers" in name.split(".")
        if not inside or parameter.dim() != 2 or not parameter.requires_grad:
            continue
        rows = [len(parameter)]
        owner = network.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
        if name.endswith(".qkv.weight") and isinstance(owner, Attention):
            heads = (owner.num_heads, owner.num_kv_heads, owner.num_kv_heads)
            rows = [count * owner.head_width for count in heads]
        elif name.endswith("gate_up.weight"):
            rows = [len(parameter) // 2] * 2
        yield parameter, rows
