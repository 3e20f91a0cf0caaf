"""A network spread over processes: FSDP2, and matrices split between neighbours.

FSDP2 (`fully_shard`; Zhao et al., arXiv 2304.11277): every process keeps a part of every parameter,
of its gradient and of its optimiser state, and layers are put together for the time that they run.
Tensor parallelism (Megatron-LM, Shoeybi et al., arXiv 1909.08053): neighbours compute some heads
and some of the MLP's inner dimensions each and add up what comes out. The rows of matrices that our
network fuses are reordered first, so that each neighbour gets its part of queries, keys and values.

Not here: splitting by tokens (sequence parallelism), experts or layers, and splitting embedding and
output layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from anyorder.core.errors import UserError
from anyorder.model.attention import Attention
from anyorder.model.layers import Mlp
from anyorder.model.transformer import Transformer
from anyorder.training.adapters import AdaptedLinear
from anyorder.training.team import Team

Orders = Mapping[str, torch.Tensor]
"""Parameters whose rows are reordered -> which row comes where."""


def shard(
    root: nn.Module,
    network: nn.Module,
    layers: Sequence[nn.Module],
    team: Team,
    *,
    dtype: torch.dtype,
) -> Orders:
    """Spread the parameters of `root`, of which `network` and its `layers` are parts, over the
    team.

    Passes run in `dtype`, gradients are summed in float32."""
    orders: Orders = {}
    if team.tensor > 1:
        orders = _split_matrices(network, team)
    if team.num_shares == 1 and dtype == torch.float32:
        return orders  # nothing to share and nothing to round
    assert team.mesh is not None, "a team of several processes has a mesh"
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for module in (*layers, root):
        # Put away after every pass, so that the parameters are parts whenever no pass runs.
        fully_shard(module, mesh=team.mesh["data"], mp_policy=policy, reshard_after_forward=True)
    for part in root.modules():
        if isinstance(part, FSDPModule):
            # The loss is a sum over all sequences, and so is its gradient.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
    return orders


def _split_matrices(network: nn.Module, team: Team) -> Orders:
    count = team.tensor
    if type(network) is not Transformer:
        raise UserError("[run] tensor_parallel is for decoders; leave it out for other networks.")
    config = network.config
    special = config.qk_norm != "none" or config.alibi or any(x.experts for x in config.layers)
    special |= any(isinstance(module, AdaptedLinear) for module in network.modules())
    if special or config.num_kv_heads % count or config.mlp_width % count:
        raise UserError(
            f"[run] tensor_parallel = {count} must divide key/value heads ({config.num_kv_heads}) "
            f"and mlp_width ({config.mlp_width}), of a decoder without adapters, experts, ALiBi "
            "and norms of queries; choose another number, or leave it out."
        )
    assert team.mesh is not None, "a team of several processes has a mesh"
    orders: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, Attention):
            heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
            rows = [number * config.head_width for number in heads]
            orders |= _reorder(f"{name}.qkv", module.qkv, rows, count)
            module.num_heads //= count
            module.num_kv_heads //= count
        elif isinstance(module, Mlp) and module.gated:
            rows = [config.mlp_width] * 2
            orders |= _reorder(f"{name}.gate_up", module.gate_up, rows, count)
    for layer in network.layers:
        up = "mlp.gate_up" if config.gated else "mlp.up"
        columns = {"attention.qkv": ColwiseParallel(), up: ColwiseParallel()}
        plan = {**columns, "attention.out": RowwiseParallel(), "mlp.down": RowwiseParallel()}
        parallelize_module(layer, team.mesh["tensor"], plan, src_data_rank=None)
        for branch in ("attention.out", "mlp.down"):
            # The residual stream is added in place, which a view would not allow.
            layer.get_submodule(branch).register_forward_hook(
                lambda module, inputs, output: output.clone()
            )
    return orders


def _reorder(name: str, layer: nn.Linear, rows: list[int], count: int) -> dict[str, torch.Tensor]:
    """Bring together the rows of each neighbour."""
    parts = torch.split(torch.arange(sum(rows)), rows)
    chunks = zip(*(part.chunk(count) for part in parts), strict=True)
    order = torch.cat([rows for chunk in chunks for rows in chunk])
    found = {}
    for attribute, parameter in layer.named_parameters():
        parameter.data = parameter.data[order.to(parameter.device)]
        found[f"{name}.{attribute}"] = order
    return found


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, team: Team) -> float:
    """Scale the gradients down to a norm of at most `limit`; returns the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = torch.zeros((), dtype=torch.float64, device=team.device)
    for gradient in gradients:
        local, copies = gradient, float(team.size)
        if isinstance(gradient, DTensor):
            local = gradient.to_local()
            for dimension, placement in enumerate(gradient.placements):
                if not placement.is_replicate():
                    copies /= gradient.device_mesh.size(dimension)
        total += local.double().square().sum() / copies
    dist.all_reduce(total)
    norm = float(total.sqrt())
    if math.isfinite(limit) and math.isfinite(norm):
        for gradient in gradients:
            gradient.mul_(min(limit / (norm + 1e-6), 1.0))
    return norm
