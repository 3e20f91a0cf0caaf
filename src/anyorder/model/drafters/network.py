"""What drafters' networks share: a few decoder layers behind a fusion of the target's features."""

from __future__ import annotations

import torch
from torch import nn

from anyorder.model.backends.linear import Linear
from anyorder.model.config import ModelConfig
from anyorder.model.layers import RmsNorm
from anyorder.model.transformer import Layer


class FusedLayers(nn.Module):
    """Layers, a linear layer that fuses `num_features` hidden states of the target side by side,
    and a final norm; the parts of `core.batch.Network` that follow from them."""

    def __init__(self, config: ModelConfig, *, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.fusion = Linear(num_features * config.width, config.width, bias=False)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(len(config.layers)))
        self.final_norm = RmsNorm(config.width, config.norm_epsilon)

    @property
    def cache_shapes(self) -> list[tuple[int, int]]:
        """(key/value heads, head width) of every layer."""
        return [(self.config.num_kv_heads, self.config.head_width)] * len(self.layers)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and cache."""
        return self.fusion.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where weights, activations and cache live."""
        return self.fusion.weight.device

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """See Network: it has one head."""
        raise AssertionError("this network has one prediction head")
