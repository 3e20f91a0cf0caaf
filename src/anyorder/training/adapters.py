"""Low-rank adapters: small matrices that are trained in place of the large ones they are added to.

LoRA (arXiv 2106.09685): W + scale * up @ down, with `up` zero at first. DoRA (arXiv 2402.09353):
the rows of that sum are scaled to lengths that are learnt; the gradient takes the sum's own lengths
for constants (section 4.3). Where our network fuses matrices that the family's checkpoints keep
apart, each has its own adapter, so that what is written is what PEFT reads and writes.

Not here: dropout, adapters of embeddings, norms, output layers and stacks of experts.

Shape suffixes: N rows of input, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from anyorder.model.architecture import architecture
from anyorder.model.loading import Part, parts
from anyorder.model.saving import TOKENIZER_FILES, whole_folder
from anyorder.model.transformer import Transformer
from anyorder.training.sections import AdapterRecipe

_TARGETS = {
    "attention": ("qkv", "out"),
    "mlp": ("gate_up", "up", "down"),
    "all": ("qkv", "out", "gate_up", "up", "down"),
}


class AdaptedLinear(nn.Module):
    """A frozen linear layer with an adapter for each of the matrices that it fuses."""

    def __init__(
        self, base: nn.Linear, rows: list[int], recipe: AdapterRecipe, rng: torch.Generator
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rows = rows
        self.scale = recipe.alpha / recipe.rank
        bound = 1.0 / math.sqrt(base.in_features)  # as PEFT draws them
        self.down = nn.ParameterList(
            torch.empty(recipe.rank, base.in_features).uniform_(-bound, bound, generator=rng)
            for _ in rows
        )
        self.up = nn.ParameterList(torch.zeros(count, recipe.rank) for count in rows)
        self.length = nn.Parameter(base.weight.float().norm(dim=1)) if recipe.dora else None

    def forward(self, x_NI: torch.Tensor) -> torch.Tensor:
        """[N, O]"""
        low_NR = F.linear(x_NI, torch.cat(list(self.down))).chunk(len(self.rows), dim=-1)
        added = [F.linear(low, up_OR) for low, up_OR in zip(low_NR, self.up, strict=True)]
        sum_NO = F.linear(x_NI, self.base.weight) + torch.cat(added, dim=-1) * self.scale
        if self.length is not None:
            own_O = self._sum().norm(dim=1)
            sum_NO = sum_NO * (self.length / own_O.to(self.length.dtype))
        return sum_NO if self.base.bias is None else sum_NO + self.base.bias

    def merged(self) -> nn.Linear:
        """One linear layer that computes the same."""
        weight_OI = self._sum()
        if self.length is not None:
            weight_OI *= (self.length.detach().float() / weight_OI.norm(dim=1))[:, None]
        layer = copy.deepcopy(self.base)
        layer.weight.data = weight_OI.to(layer.weight.dtype)
        return layer

    @torch.no_grad()
    def _sum(self) -> torch.Tensor:
        """The matrix and what is added to it, in float32."""
        pairs = zip(self.up, self.down, strict=True)
        added_OI = torch.cat([up.float() @ down.float() for up, down in pairs])
        return self.base.weight.float() + added_OI * self.scale


def adapt(network: Transformer, recipe: AdapterRecipe, *, seed: int) -> None:
    """Freeze the network and give its layers adapters, all that is then trained."""
    network.requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    for name, module in list(network.named_modules()):
        place, _, attribute = name.rpartition(".")
        wanted = name.startswith("layers.") and attribute in _TARGETS[recipe.targets]
        if wanted and isinstance(module, nn.Linear):
            rows = [len(part.target) for part in _stored(network, name, module.weight)]
            adapter = AdaptedLinear(module, rows, recipe, rng)
            setattr(network.get_submodule(place), attribute, adapter)


def merged(network: Transformer) -> Transformer:
    """A copy of the network with its adapters added to its matrices."""
    result = copy.deepcopy(network)
    for name, module in adapted(result):
        owner = result.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], module.merged())
    return result


def adapted(network: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """The layers with adapters, by name."""
    for name, module in list(network.named_modules()):
        if isinstance(module, AdaptedLinear):
            yield name, module


def save_adapter(
    folder: Path, network: Transformer, recipe: AdapterRecipe, base: str, tokenizer_folder: Path
) -> None:
    """Write the adapters alone, as a folder that PEFT loads onto the model `base`."""
    tensors: dict[str, torch.Tensor] = {}
    targets, transposed = set(), False
    for name, module in adapted(network):
        first = 0
        stored = _stored(network, name, module.base.weight)
        for part, up_OR, down_RI in zip(stored, module.up, module.down, strict=True):
            stem = part.tensor.removesuffix(".weight")
            targets.add(stem.rpartition(".")[2])
            transposed |= part.stored.transposed
            prefix = f"base_model.model.{stem}"
            tensors[f"{prefix}.lora_A.weight"] = down_RI.detach().contiguous()
            tensors[f"{prefix}.lora_B.weight"] = _ordered(network, part, up_OR)
            if module.length is not None:
                length_O = module.length[first : first + len(up_OR)]
                tensors[f"{prefix}.lora_magnitude_vector"] = _ordered(network, part, length_O)
            first += len(up_OR)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": recipe.rank,
        "lora_alpha": recipe.alpha,
        "lora_dropout": 0.0,
        "use_dora": recipe.dora,
        "target_modules": sorted(targets),
        "fan_in_fan_out": transposed,
        "bias": "none",
        "inference_mode": True,
    }
    with whole_folder(folder) as partial:
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config, indent=2) + "\n"
        (partial / "adapter_config.json").write_text(text, encoding="utf-8")
        for name in TOKENIZER_FILES:
            if (tokenizer_folder / name).exists():
                shutil.copyfile(tokenizer_folder / name, partial / name)


def _stored(network: Transformer, name: str, weight_OI: torch.Tensor) -> list[Part]:
    """The tensors that a matrix is in the family's checkpoints."""
    family = architecture(network.config.architecture)
    found = parts(f"{name}.weight", weight_OI, network.config, family.names, family.prefixes[0])
    return list(found)


def _ordered(network: Transformer, part: Part, rows: torch.Tensor) -> torch.Tensor:
    """Rows of outputs in the order in which the family stores them."""
    rows = rows.detach()
    if part.stored.order is not None:
        places = part.stored.order(torch.arange(len(rows)), network.config)
        rows = rows[places.argsort().to(rows.device)]
    return rows.contiguous()
