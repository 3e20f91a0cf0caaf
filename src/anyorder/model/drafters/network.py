"""What drafters' networks share: a few decoder layers behind a fusion of the target's features, a
hold on the target, and how they are written into folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from anyorder.model.backends.linear import Linear
from anyorder.model.config import ModelConfig
from anyorder.model.layers import RmsNorm
from anyorder.model.saving import whole_folder
from anyorder.model.transformer import Layer, Transformer


class Attached:
    """The target of a drafter: none of its own modules, and shared by its copies."""

    def __init__(self, target: Transformer) -> None:
        self.target = target

    def __deepcopy__(self, memo: dict[int, Any]) -> Attached:
        return self


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


def save_drafter(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    fields: Mapping[str, Any],
    *,
    file: str = "model",
) -> None:
    """Write a drafter's folder, in place of what was there; UserError if the disk is full. Weights
    are rounded to bfloat16: they run in the target's type, and never change its text."""
    rounded = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    with whole_folder(folder) as partial:
        save_file(rounded, partial / f"{file}.safetensors", metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
