"""Mixture-of-experts MLP: each token visits its likeliest experts (Mixtral, arXiv 2401.04088).

Tokens are sorted by expert, and every expert multiplies all of its tokens in one grouped GEMM; no
loop runs over tokens or experts. The router works in float32. No token is ever dropped, and there
is no balancing loss here. Grouped GEMMs exist for float32, bfloat16 and float16, not for float64.

Shape suffixes: N packed tokens, W width of the residual stream, X experts, P experts per token,
S = N * P visits sorted by expert, I inner width of an expert, G groups of Y experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.model.backends.linear import Linear
from anyorder.model.config import Experts, ModelConfig
from anyorder.model.layers import ACTIVATIONS, Mlp, RmsNorm


class ExpertLinear(nn.Module):
    """One linear layer per expert, without bias."""

    def __init__(self, num_experts: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, width_out, width_in))

    def forward(self, visits_SW: torch.Tensor, ends_X: torch.Tensor) -> torch.Tensor:
        """Rows up to `ends_X[0]` through expert 0, up to `ends_X[1]` through expert 1, ..."""
        return F.grouped_mm(visits_SW, self.weight.transpose(1, 2), offs=ends_X)


class ExpertMlps(nn.Module):
    """The gated MLPs of all experts."""

    def __init__(self, config: ModelConfig, experts: Experts) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.gate_up = ExpertLinear(experts.num, config.width, 2 * experts.width)
        self.down = ExpertLinear(experts.num, experts.width, config.width)

    def forward(self, visits_SW: torch.Tensor, ends_X: torch.Tensor) -> torch.Tensor:
        """Same shape as `visits_SW`, whose rows are sorted by expert."""
        gate_SI, up_SI = self.gate_up(visits_SW, ends_X).chunk(2, dim=-1)
        return self.down(self.activation(gate_SI).mul_(up_SI), ends_X)  # type: ignore[no-any-return]


class MixtureOfExperts(nn.Module):
    """Router, experts and, in some families, an expert that all tokens share."""

    def __init__(self, config: ModelConfig, experts: Experts) -> None:
        super().__init__()
        self.config = experts
        self.router = Linear(config.width, experts.num, bias=False)
        self.experts = ExpertMlps(config, experts)
        if experts.choice_bias:
            self.choice = ChoiceBias(experts.num)
        if experts.beside_dense:
            self.router_norm = RmsNorm(config.width, config.norm_epsilon)
            self.expert_scale = ExpertScale(experts.num)
        if experts.shared_width:
            self.shared = Mlp(config, experts.shared_width)
            if experts.shared_gate:
                self.shared_gate = Linear(config.width, 1, bias=False)

    def forward(self, x_NW: torch.Tensor, routed_by_NW: torch.Tensor | None = None) -> torch.Tensor:
        """Same shape as `x_NW`; `routed_by_NW` is what the router reads, where that is another."""
        per_token = self.config.per_token
        shares_NP, experts_NP = self._route(x_NW if routed_by_NW is None else routed_by_NW)
        expert_S, order_S = experts_NP.flatten().sort(stable=True)
        ends_X = torch.bincount(expert_S, minlength=self.config.num).cumsum(0, dtype=torch.int32)
        visited_SW = self.experts(x_NW[order_S // per_token], ends_X)
        # Put back in the order of tokens, so that each token's sum has the same order of terms
        # whoever it is batched with.
        visited_NPW = visited_SW[order_S.argsort()].view(len(x_NW), per_token, -1)
        out_NW: torch.Tensor = (visited_NPW * shares_NP.to(x_NW.dtype)[:, :, None]).sum(dim=1)
        if self.config.shared_width:
            shared_NW = self.shared(x_NW)
            if self.config.shared_gate:
                shared_NW = shared_NW * self.shared_gate(x_NW).sigmoid()
            out_NW += shared_NW
        return out_NW

    def _route(self, x_NW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token's experts [N, P] and their weights."""
        config = self.config
        if self.config.beside_dense:
            x_NW = self.router_norm(x_NW) * x_NW.shape[-1] ** -0.5
        outputs_NX = self.router(x_NW).float()
        shares_NX = outputs_NX.softmax(-1) if config.scores == "softmax" else outputs_NX.sigmoid()
        wanted_NX = shares_NX + self.choice.bias if config.choice_bias else shares_NX
        if config.num_groups > 1:
            wanted_NGY = wanted_NX.unflatten(-1, (config.num_groups, -1))
            best_NG = wanted_NGY.topk(min(2, wanted_NGY.shape[-1]), dim=-1).values.sum(-1)
            groups_NG = best_NG.topk(config.groups_per_token, dim=-1).indices
            closed_NG = torch.ones_like(best_NG, dtype=torch.bool).scatter(1, groups_NG, False)
            wanted_NX = wanted_NGY.masked_fill(closed_NG[:, :, None], -torch.inf).flatten(1)
        experts_NP = wanted_NX.topk(config.per_token, dim=-1).indices
        shares_NP = shares_NX.gather(1, experts_NP)
        if config.normalize:
            shares_NP = shares_NP / shares_NP.sum(dim=-1, keepdim=True)
        if config.beside_dense:
            shares_NP = shares_NP * self.expert_scale.weight[experts_NP]
        return shares_NP * config.scale, experts_NP


class DenseAndExperts(nn.Module):
    """A dense MLP and experts beside it, which both read the residual stream (Gemma 4)."""

    def __init__(self, config: ModelConfig, experts: Experts) -> None:
        super().__init__()
        self.dense_norm = RmsNorm(config.width, config.norm_epsilon)
        self.dense = Mlp(config, config.mlp_width)
        self.dense_out_norm = RmsNorm(config.width, config.norm_epsilon)
        self.sparse_norm = RmsNorm(config.width, config.norm_epsilon)
        self.sparse = MixtureOfExperts(config, experts)
        self.sparse_out_norm = RmsNorm(config.width, config.norm_epsilon)

    def forward(self, x_NW: torch.Tensor) -> torch.Tensor:
        """Same shape as `x_NW`."""
        dense_NW: torch.Tensor = self.dense_out_norm(self.dense(self.dense_norm(x_NW)))
        sparse_NW: torch.Tensor = self.sparse(self.sparse_norm(x_NW), x_NW)
        return dense_NW.add_(self.sparse_out_norm(sparse_NW))


class ExpertScale(nn.Module):
    """What each expert's weight is multiplied by, [X]."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_experts))


class ChoiceBias(nn.Module):
    """What is added to experts' weights where they are chosen, [X]."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_experts))


def is_static(network: nn.Module) -> bool:
    """Does a pass do the same for all tokens, whatever they are? Experts are asked how many tokens
    come to each."""
    return not any(isinstance(module, MixtureOfExperts) for module in network.modules())
