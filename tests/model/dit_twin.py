"""A naive, dense DiT in the words of MDLM's checkpoints, and such checkpoints of random weights.

One sequence at a time, no cache, attention spelled out. BD3-LM's clean blocks are told by one pass
over [noisy; clean] with the mask its paper trains with.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

VOCABULARY = 60
LENGTH = 32
WIDTH, HEADS, LAYERS, CONDITION = 48, 4, 3, 20
FIELDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "model_length": LENGTH,
    "hidden_dim": WIDTH,
    "cond_dim": CONDITION,
    "n_blocks": LAYERS,
    "n_heads": HEADS,
    "dropout": 0.1,
}
Weights = dict[str, torch.Tensor]


def weights(*, seed: int = 0, adaptive: bool = True) -> Weights:
    """Random tensors under the published names."""
    shapes: dict[str, tuple[int, ...]] = {
        "vocab_embed.embedding": (VOCABULARY, WIDTH),
        "output_layer.norm_final.weight": (WIDTH,),
        "output_layer.linear.weight": (VOCABULARY, WIDTH),
        "output_layer.linear.bias": (VOCABULARY,),
    }
    if adaptive:
        shapes |= {
            "sigma_map.mlp.0.weight": (CONDITION, 256),
            "sigma_map.mlp.0.bias": (CONDITION,),
            "sigma_map.mlp.2.weight": (CONDITION, CONDITION),
            "sigma_map.mlp.2.bias": (CONDITION,),
            "output_layer.adaLN_modulation.weight": (2 * WIDTH, CONDITION),
            "output_layer.adaLN_modulation.bias": (2 * WIDTH,),
        }
    for number in range(LAYERS):
        block = {
            "norm1.weight": (WIDTH,),
            "norm2.weight": (WIDTH,),
            "attn_qkv.weight": (3 * WIDTH, WIDTH),
            "attn_out.weight": (WIDTH, WIDTH),
            "mlp.0.weight": (4 * WIDTH, WIDTH),
            "mlp.0.bias": (4 * WIDTH,),
            "mlp.2.weight": (WIDTH, 4 * WIDTH),
            "mlp.2.bias": (WIDTH,),
        }
        if adaptive:
            block |= {
                "adaLN_modulation.weight": (6 * WIDTH, CONDITION),
                "adaLN_modulation.bias": (6 * WIDTH,),
            }
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        made[name] = 0.2 * torch.randn(shape, generator=generator)
        if "norm" in name:
            made[name] += 1.0
    return made


def save_sedd(
    folder: Path,
    tensors: Weights,
    *,
    graph: str = "absorb",
    noise: str = "loglinear",
    scaled: bool | None = None,
) -> Path:
    """A checkpoint folder as SEDD's authors lay it out; uniform noise has no token of its own."""
    absorbs = graph == "absorb"
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    names = {"hidden_size": "hidden_dim", "length": "model_length"}
    same = ("cond_dim", "n_blocks", "n_heads")
    model = {name: FIELDS[names.get(name, name)] for name in (*names, *same)}
    fields = {
        "tokens": VOCABULARY - absorbs,
        "graph": {"type": graph, "report_all": False},
        "noise": {"type": noise, "sigma_min": 1e-4, "sigma_max": 20},
        "model": {
            "name": "small",
            "scale_by_sigma": absorbs if scaled is None else scaled,
            **model,
        },
    }
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def save(folder: Path, tensors: Weights, **fields: Any) -> Path:
    """A checkpoint folder as the hub has them."""
    stored = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    stored["backbone.rotary_emb.inv_freq"] = torch.zeros(WIDTH // HEADS // 2)
    if fields["model_type"] == "bd3lm":
        stored["sampling_eps_min"], stored["sampling_eps_max"] = torch.zeros(2).unbind()
    save_file(
        {name: tensor.clone() for name, tensor in stored.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(FIELDS | fields))
    return folder


def logits(
    tensors: Weights,
    tokens: list[int],
    *,
    sigma: float = 0.0,
    visible: torch.Tensor | None = None,
    positions: list[int] | None = None,
) -> torch.Tensor:
    """[tokens, VOCABULARY]"""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, [WIDTH]) * tensors[f"{name}.weight"]

    adaptive = "sigma_map.mlp.0.weight" in tensors
    if adaptive:
        steps = torch.arange(128).float() / 128
        angles = sigma * torch.exp(-math.log(10_000) * steps)
        waves = torch.cat((angles.cos(), angles.sin()))
        level = linear(F.silu(linear(waves, "sigma_map.mlp.0")), "sigma_map.mlp.2")
        level = F.silu(level)

    def modulation(name: str, count: int) -> list[torch.Tensor]:
        if adaptive:
            return list(linear(level, f"{name}.adaLN_modulation").chunk(count))
        neutral = [torch.zeros(WIDTH), torch.zeros(WIDTH), torch.ones(WIDTH)]
        return (neutral * 2)[:count]

    head = WIDTH // HEADS
    frequencies = 1 / 10_000 ** (torch.arange(0, head, 2).float() / head)
    places = torch.tensor(positions or range(len(tokens))).float()
    turns = torch.outer(places, frequencies)
    cos, sin = (torch.cat((f, f), dim=-1)[:, None] for f in (turns.cos(), turns.sin()))

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    x = tensors["vocab_embed.embedding"][tokens]
    for number in range(LAYERS):
        block = f"blocks.{number}"
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation(block, 6)
        read = norm(x, f"{block}.norm1") * (1 + scale) + shift
        queries, keys, values = linear(read, f"{block}.attn_qkv").view(-1, 3, HEADS, head).unbind(1)
        scores = torch.einsum("qhd,khd->hqk", rotated(queries), rotated(keys)) / math.sqrt(head)
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).flatten(1)
        x = x + gate * linear(mixed, f"{block}.attn_out")
        read = norm(x, f"{block}.norm2") * (1 + mlp_scale) + mlp_shift
        inner = F.gelu(linear(read, f"{block}.mlp.0"), approximate="tanh")
        x = x + mlp_gate * linear(inner, f"{block}.mlp.2")
    shift, scale = modulation("output_layer", 2)
    return linear(norm(x, "output_layer.norm_final") * (1 + scale) + shift, "output_layer.linear")


def block_logits(
    tensors: Weights, clean: list[int], noisy: list[int], block_size: int
) -> torch.Tensor:
    """What BD3-LM tells of each noisy token: its block as it is, all blocks before it clean."""
    length = len(clean)
    block = torch.arange(length) // block_size
    within, before = block[:, None] == block, block[:, None] > block
    none = torch.zeros_like(within)
    visible = torch.cat(
        (torch.cat((within, before), dim=1), torch.cat((none, within | before), dim=1))
    )
    positions = [*range(length), *range(length)]
    return logits(tensors, [*noisy, *clean], visible=visible, positions=positions)[:length]
