"""EAGLE-3 (arXiv 2503.01840): one decoder layer that continues a target's hidden states.

A row reads a token's embedding and what is known of the token before it: the target's hidden states
after three of its layers, side by side and fused by one linear layer, or, where the target has not
been yet, this network's own output for that token. Queries, keys and values come from both, each
normalised, one behind the other; the residual stream is the second alone. It scores a part of the
vocabulary, the tokens most frequent in training.

Published checkpoints have one layer `midlayer`, `fc`, `norm` and `lm_head`, and `d2t`: what to add
to a row of `lm_head` to get its token. The embedding is the target's unless they hold their own.
Where they hold no `lm_head` either, which is this package's own addition, the tokens of `d2t` are
read out with the target's rows (`draft_vocabulary`).
The layers that are read are those at depths 2, n / 2 and n - 3 of n, as in the authors' code, or
those whose outputs `eagle_config.eagle_aux_hidden_state_layer_ids` lists.

Not here: EAGLE 1 and 2, whose network differs. Growing the tree is `drafters/eagle.py`'s.

Shape suffixes: N packed tokens, M some of their rows, W width, S scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.core.errors import CheckpointError
from anyorder.core.method import Abilities
from anyorder.model.architectures.llama import Llama
from anyorder.model.backends.linear import Linear, linear
from anyorder.model.config import ModelConfig
from anyorder.model.drafters.draft_vocabulary import (
    MAPS,
    output_rows,
    read_scored,
    scored_tensors,
    spread,
)
from anyorder.model.drafters.fit import check_fit
from anyorder.model.drafters.network import Attached, FusedLayers, save_drafter
from anyorder.model.fields import Fields
from anyorder.model.layers import RmsNorm
from anyorder.model.loading import fill
from anyorder.model.naming import NameMap
from anyorder.model.rotary import rotation
from anyorder.model.safetensors_folder import SafetensorsFolder, read_json
from anyorder.model.saving import named_tensors
from anyorder.model.transformer import Layer, Transformer, make_embedding

_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_NAMES: NameMap = {
    "embedding": "embed_tokens",
    "fusion": "fc",
    "hidden_norm": "midlayer.hidden_norm",
    "final_norm": "norm",
    "head": "lm_head",
    **{f"layers.{{layer}}.{part}": f"midlayer.{name}" for part, name in _LAYER.items()},
}


class Eagle(FusedLayers):
    """The drafter's network; implements `core.batch.Network`."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_features: int,
        num_scored: int,
        own_embedding: bool,
        own_head: bool = True,
    ) -> None:
        super().__init__(config, num_features=num_features)
        self.hidden_norm = RmsNorm(config.width, config.norm_epsilon)
        self.register_buffer("rows_SW", None, persistent=False)
        self.rows_SW: torch.Tensor | None
        """The target's rows that it reads out with, where it has no head of its own."""
        self.own_head = own_head
        if own_head:
            self.head = Linear(config.width, num_scored, bias=False)
        self.own_embedding = own_embedding
        if own_embedding:
            self.embedding = make_embedding(config.vocabulary_size, config.width)
        self.register_buffer("scored", None)
        self.scored: torch.Tensor | None
        """The token that each row of the head scores; None: all, in order."""

    def attach(self, target: Transformer, scored: torch.Tensor | None) -> None:
        """Embed, and without an own head read out, by this target; score these tokens (None: all).
        The target's weights do not become the drafter's."""
        self._host = Attached(target)
        self.scored = scored
        if not self.own_head:
            self.rows_SW = output_rows(target, scored)

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        """Final hidden states [N, W]; the tap after 1 layer is what to condition the next on."""
        own = self.embedding if self.own_embedding else self._host.target.embedding
        embedded_NW = own(batch.tokens_N)
        x_NW = torch.zeros_like(embedded_NW)
        for first, rows in batch.conditioning:
            known = rows if rows.shape[-1] == self.config.width else self.fusion(rows)
            x_NW[first : first + len(rows)] = known
        layer, rope = cast(Layer, self.layers[0]), self.config.layers[0].rope
        turn = None if rope is None else rotation(rope, batch.positions_N, x_NW.dtype)
        inputs = torch.cat((layer.normalize(embedded_NW), self.hidden_norm(x_NW)), dim=-1)
        x_NW = layer.merge(x_NW, layer.attention(inputs, turn, batch, pool))
        if 1 in batch.taps:
            batch.taps[1] = x_NW
        return self.final_norm(x_NW)  # type: ignore[no-any-return]

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, V]; minus infinity for what it does not score."""
        scores_MS = self.draft_logits(hidden_MW)
        return spread(scores_MS, self.scored, self.config.vocabulary_size)

    def draft_logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """float32 logits [M, S] of what it scores."""
        if self.rows_SW is not None:
            return linear(hidden_MW, self.rows_SW).float()
        return self.head(hidden_MW).float()  # type: ignore[no-any-return]


def load_eagle(
    folder: Path, name: str, target: Transformer, host: Abilities
) -> tuple[Eagle, Abilities]:
    """The drafter in a folder, for this target; CheckpointError if they do not fit."""
    fields = Fields(read_json(folder / "config.json"), str(folder / "config.json"))
    config = Llama.config(fields)
    if len(config.layers) != 1:
        raise CheckpointError(
            f"{fields.origin} describes an EAGLE drafter of {len(config.layers)} layers; EAGLE-3 "
            "has 1."
        )
    check_fit(config, target, kind="EAGLE-3 drafter", name=name, target_name=host.name)
    config = replace(config, attention_width=2 * config.width, tied_embeddings=False)
    features = _features(fields, len(target.config.layers), host.name)
    source = SafetensorsFolder(folder)
    present = set(source.names())
    num_scored = fields.size("draft_vocab_size")
    with torch.device("meta"):
        network = Eagle(
            config,
            num_features=len(features),
            num_scored=num_scored,
            own_embedding=f"{_NAMES['embedding']}.weight" in present,
            own_head=f"{_NAMES['head']}.weight" in present,
        )
    fill(
        network,
        config,
        source,
        _NAMES,
        owner="an EAGLE-3 drafter",
        ignored=MAPS,
        dtype=target.dtype,
        device=target.device,
    )
    scored = read_scored(source, num_scored, config.vocabulary_size)
    network.attach(target, None if scored is None else scored.to(target.device))
    abilities = Abilities(
        name=name,
        vocabulary_size=config.vocabulary_size,
        context_length=config.context_length,
        kind="eagle",
        decoding={"speculative": {"drafter": "eagle"}},
        features=features,
    )
    return network.eval(), abilities


def save_eagle(folder: Path, network: Eagle, fields: Mapping[str, Any]) -> None:
    """Write the drafter as `load_eagle` reads it; `fields` is its config.json."""
    maps = scored_tensors(network.scored, network.config.vocabulary_size)
    save_drafter(folder, {**named_tensors(network, network.config, _NAMES), **maps}, fields)


def usual_features(num_layers: int) -> tuple[int, int, int]:
    """The depths at which a target of so many layers is read, where nothing else is said."""
    return 2, num_layers // 2, num_layers - 3


def _features(fields: Fields, num_layers: int, target_name: str) -> tuple[int, ...]:
    """How many of the target's layers run before each of the hidden states that are read."""
    nested = fields.inside("eagle_config")
    if nested.has("eagle_aux_hidden_state_layer_ids"):
        layers = nested.numbers("eagle_aux_hidden_state_layer_ids")
        features = tuple(int(layer) + 1 for layer in layers)
    else:
        features = usual_features(num_layers)
    if not all(0 <= feature <= num_layers for feature in features):
        raise CheckpointError(
            f"the EAGLE-3 drafter of {fields.origin} reads hidden states after layers "
            f"{', '.join(map(str, features))}, but {target_name} has {num_layers} layers."
        )
    return features
