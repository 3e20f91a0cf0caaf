"""DFlash (arXiv 2602.06036): a few bidirectional layers that fill in a whole block at once.

The block is the last token and as many mask tokens as follow, embedded and scored by the target's
own embedding and head. Beside the block, every layer sees the context: keys and values projected
from the target's hidden states after some of its layers, side by side, fused by one linear layer
and normalised, the same for all layers. Context rows are those with conditioning; they are cached
and have no output.

Published checkpoints name their parts as Qwen3 does, with `fc` and `hidden_norm` for the fusion,
and no embedding and no head; `dflash_config` lists the layers whose outputs are read.

Shape suffixes: N packed tokens, M some of their rows, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.core.errors import CheckpointError
from anyorder.core.method import Abilities
from anyorder.model.architectures.qwen3 import Qwen3
from anyorder.model.config import ModelConfig
from anyorder.model.drafters.fit import check_fit
from anyorder.model.drafters.network import Attached, FusedLayers, save_drafter
from anyorder.model.fields import Fields
from anyorder.model.layers import RmsNorm
from anyorder.model.loading import fill
from anyorder.model.naming import LLAMA_NAMES, NameMap
from anyorder.model.rotary import rotation
from anyorder.model.safetensors_folder import SafetensorsFolder, read_json
from anyorder.model.saving import named_tensors
from anyorder.model.transformer import Layer, Transformer

_NAMES: NameMap = {**LLAMA_NAMES, "fusion": "fc", "fusion_norm": "hidden_norm"}


class DFlash(FusedLayers):
    """The drafter's network; implements `core.batch.Network`."""

    def __init__(self, config: ModelConfig, *, num_features: int) -> None:
        super().__init__(config, num_features=num_features)
        self.fusion_norm = RmsNorm(config.width, config.norm_epsilon)

    def attach(self, target: Transformer) -> None:
        """Embed and score by this target. Its weights do not become the drafter's."""
        self._host = Attached(target)

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        """Final hidden states [N, W]; those of context rows mean nothing."""
        x_NW = self._host.target.embed(batch.tokens_N)
        rotations = {
            rope: rotation(rope, batch.positions_N, x_NW.dtype) for rope in self.config.ropes
        }
        context_NW = torch.zeros_like(x_NW)
        is_context_N1 = torch.zeros_like(x_NW[:, :1], dtype=torch.bool)
        for first, rows in batch.conditioning:
            context_NW[first : first + len(rows)] = self.fusion_norm(self.fusion(rows))
            is_context_N1[first : first + len(rows)] = True
        only_context = sum(len(rows) for _, rows in batch.conditioning) == len(x_NW)
        for index, module in enumerate(self.layers):
            layer, rope = cast(Layer, module), self.config.layers[index].rope
            turn = None if rope is None else rotations[rope]
            if only_context:
                layer.attention.project(context_NW, turn, batch, pool)
                continue
            inputs_NW = torch.where(is_context_N1, context_NW, layer.normalize(x_NW))
            x_NW = layer.merge(x_NW, layer.attention(inputs_NW, turn, batch, pool))
        return self.final_norm(x_NW)  # type: ignore[no-any-return]

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, V] of the tokens at the rows' own positions."""
        return self._host.target.logits(hidden_MW)


def load_dflash(
    folder: Path, name: str, target: Transformer, host: Abilities
) -> tuple[DFlash, Abilities]:
    """The drafter in a folder, for this target; CheckpointError if they do not fit."""
    fields = Fields(read_json(folder / "config.json"), str(folder / "config.json"))
    config = Qwen3.config(fields)
    check_fit(config, target, kind="DFlash drafter", name=name, target_name=host.name)
    num_layers = len(target.config.layers)
    expected = fields.size("num_target_layers", num_layers)
    if expected != num_layers:
        raise CheckpointError(
            f"the DFlash drafter {name} is for a target of {expected} layers and {host.name} "
            f"has {num_layers}; use a drafter trained for {host.name}."
        )
    nested = fields.inside("dflash_config")
    layers = [int(layer) for layer in nested.numbers("target_layer_ids")]
    if not layers or not all(0 <= layer < num_layers for layer in layers):
        raise nested.refuse("target_layer_ids", f"{host.name} has layers 0 to {num_layers - 1}.")
    mask_token = nested.integer("mask_token_id")
    if mask_token >= config.vocabulary_size:
        raise nested.refuse("mask_token_id", f"token ids are 0 to {config.vocabulary_size - 1}.")
    if fields.size("block_size") < 2:
        raise fields.refuse("block_size", "a block is the last token and at least 1 more.")
    with torch.device("meta"):
        network = DFlash(config, num_features=len(layers))
    fill(
        network,
        config,
        SafetensorsFolder(folder),
        _NAMES,
        owner="a DFlash drafter",
        dtype=target.dtype,
        device=target.device,
    )
    network.attach(target)
    abilities = Abilities(
        name=name,
        vocabulary_size=config.vocabulary_size,
        context_length=config.context_length,
        mask_token=mask_token,
        attention=frozenset({"bidirectional"}),
        kind="dflash",
        decoding={"speculative": {"drafter": "block_drafter"}},
        features=tuple(layer + 1 for layer in layers),
        block_size=fields.size("block_size"),
    )
    return network.eval(), abilities


def save_dflash(folder: Path, network: DFlash, fields: Mapping[str, Any]) -> None:
    """Write the drafter as `load_dflash` reads it; `fields` is its config.json."""
    save_drafter(folder, named_tensors(network, network.config, _NAMES), fields)
