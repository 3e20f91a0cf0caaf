"""Mixture-of-experts MLP: each token visits its likeliest experts (Mixtral, arXiv 2401.04088).

Tokens are sorted by expert, and every expert multiplies all of its tokens in one grouped GEMM; no
loop runs over tokens or experts. The router works in float32. No token is ever dropped, and there
is no balancing loss here. Grouped GEMMs exist for float32, bfloat16 and float16, not for float64.

Shape suffixes: N packed tokens, W width of the residual stream, X experts, P experts per token,
S = N * P visits sorted by expert, I inner width of an expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.model.backends.linear import Linear
from anyorder.model.config import Experts, ModelConfig
from anyorder.model.layers import ACTIVATIONS, Mlp


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
        self.num_experts = experts.num
        self.per_token = experts.per_token
        self.normalize = experts.normalize
        self.router = Linear(config.width, experts.num, bias=False)
        self.experts = ExpertMlps(config, experts)
        self.has_shared = experts.shared_width > 0
        if self.has_shared:
            self.shared = Mlp(config, experts.shared_width)
            self.shared_gate = Linear(config.width, 1, bias=False)

    def forward(self, x_NW: torch.Tensor) -> torch.Tensor:
        """Same shape as `x_NW`."""
        shares_NX = self.router(x_NW).softmax(dim=-1, dtype=torch.float32)
        shares_NP, experts_NP = shares_NX.topk(self.per_token, dim=-1)
        if self.normalize:
            shares_NP = shares_NP / shares_NP.sum(dim=-1, keepdim=True)
        expert_S, order_S = experts_NP.flatten().sort(stable=True)
        ends_X = torch.bincount(expert_S, minlength=self.num_experts).cumsum(0, dtype=torch.int32)
        visited_SW = self.experts(x_NW[order_S // self.per_token], ends_X)
        # Put back in the order of tokens, so that each token's sum has the same order of terms
        # whoever it is batched with.
        visited_NPW = visited_SW[order_S.argsort()].view(len(x_NW), self.per_token, -1)
        out_NW: torch.Tensor = (visited_NPW * shares_NP.to(x_NW.dtype)[:, :, None]).sum(dim=1)
        if self.has_shared:
            out_NW += self.shared(x_NW) * self.shared_gate(x_NW).sigmoid()
        return out_NW
